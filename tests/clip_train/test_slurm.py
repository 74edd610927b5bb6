"""infra/slurm/train.sbatch on a real SLURM of two virtual nodes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from clip_core.config import to_dict
from clip_train import (
    CheckpointConfig,
    DataConfig,
    FitConfig,
    ModelConfig,
    OptimConfig,
    Source,
    TrainConfig,
)
from tests.support.distributed import free_port

ROOT = Path(__file__).parents[2]
TOOLS = ROOT.parent / "shared" / "tools" / "slurm"
BINARIES = ("slurmctld", "slurmd", "sbatch", "munged")

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(not TOOLS.is_dir(), reason=f"{TOOLS} has no script that starts a SLURM"),
    pytest.mark.skipif(
        any(shutil.which(name) is None for name in BINARIES), reason=f"needs {', '.join(BINARIES)} on the PATH"
    ),
]


@pytest.fixture
def slurm(tmp_path, monkeypatch) -> Iterator[None]:
    folder = tmp_path / "slurm"
    monkeypatch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
    with (tmp_path / "slurm.log").open("w") as log:
        # Daemons keep what they inherit open: a pipe here would never end.
        subprocess.run(["bash", TOOLS / "up.sh", folder, "2"], check=True, stdout=log, stderr=log, timeout=60)
    yield
    subprocess.run(["scancel", "--signal=KILL", "--full", "--state=RUNNING"], timeout=60)
    subprocess.run(["bash", TOOLS / "down.sh", folder], stdout=subprocess.DEVNULL, timeout=60)
    for pid in (folder / "pids").read_text().split():
        with suppress(ProcessLookupError):  # a slurmd that waits for its controller does not heed SIGTERM
            os.kill(int(pid), signal.SIGKILL)


def wait_for(condition, what: str, seconds: float = 90) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"waited in vain for {what}"
        time.sleep(0.1)


@pytest.mark.slow
def test_a_job_that_is_warned_of_its_end_is_queued_again_and_goes_on(slurm, tmp_path, datasets):
    config = FitConfig(
        run=str(tmp_path / "run"),
        model=ModelConfig(name="ViT-Ti-4-24"),
        data=DataConfig(sources=(Source(dataset=str(datasets / "train")),)),
        optim=OptimConfig(warmup=2),
        train=TrainConfig(steps=60, batch_size=8, threads=1, log_every=1, device="cpu"),
        checkpoint=CheckpointConfig(every=1000),
    )
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps(to_dict(config)))
    environment = {
        "CLIP_TRAIN": str(Path(sys.executable).with_name("clip-train")),
        "MASTER_ADDR": "127.0.0.1",  # the virtual nodes' names are in no name service
        "MASTER_PORT": str(free_port()),
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
    }
    command = ["sbatch", "--parsable", "--nodes=2", "--ntasks-per-node=1", "--time=10", f"--output={tmp_path}/job.log"]
    submitted = subprocess.run(
        [*command, ROOT / "infra" / "slurm" / "train.sbatch", recipe],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert submitted.returncode == 0, submitted.stderr
    job = submitted.stdout.strip()
    log, done = tmp_path / "run" / "log.jsonl", tmp_path / "run" / "done.json"

    def lines() -> list[dict]:
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    def state() -> str:
        shown = subprocess.run(["squeue", "-h", "-j", job, "-o", "%T"], capture_output=True, text=True, timeout=60)
        return shown.stdout.strip()

    wait_for(lambda: len(lines()) > 3, "the first steps")
    subprocess.run(["scancel", "--signal=USR1", job], check=True, timeout=60)  # what --signal does near the time limit
    wait_for(lambda: state() == "PENDING", "the requeue")
    saved = [int(path.name.removeprefix("step-")) for path in (tmp_path / "run" / "checkpoints").iterdir()]
    assert len(saved) == 1
    assert 3 <= saved[0] < 60
    assert not done.exists()
    before = len(lines())

    def starts_again() -> bool:
        # SLURM holds a requeued job back for two minutes. Asked too soon, it starts the job on nodes that still
        # refuse it as killed; asked too often, it never comes to starting it.
        time.sleep(5)
        subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"], capture_output=True, timeout=60)
        return len(lines()) > before

    wait_for(starts_again, "the second start")
    wait_for(lambda: state() in ("", "COMPLETED"), "the end of the job")
    assert json.loads(done.read_text())["step"] == 60
    events = [(line["event"], line["step"], line["ranks"]) for line in lines() if "ranks" in line]
    assert events == [("start", 0, 2), ("resume", saved[0], 2)]
    assert [line["step"] for line in lines() if "event" not in line] == list(range(1, 61))
    output = (tmp_path / "job.log").read_text()
    assert f"stopped by a signal after step {saved[0]}" in output
    assert "60 steps, loss" in output
