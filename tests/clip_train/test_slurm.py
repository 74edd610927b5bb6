"""Training on a real SLURM of two virtual nodes: plain srun, submission, warning, preemption, and a lost node."""

import dataclasses
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

TOOLS = Path(__file__).parents[3] / "shared" / "tools" / "slurm"
BINARIES = ("slurmctld", "slurmd", "sbatch", "munged")
TRAINER = Path(sys.executable).with_name("clip-train")
HERE = {
    "MASTER_ADDR": "127.0.0.1",  # the virtual nodes' names are in no name service
    "GLOO_SOCKET_IFNAME": "lo",
    "OMP_NUM_THREADS": "1",
}

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not TOOLS.is_dir(), reason=f"{TOOLS} has no script that starts a SLURM"),
    pytest.mark.skipif(
        any(shutil.which(name) is None for name in BINARIES), reason=f"needs {', '.join(BINARIES)} on the PATH"
    ),
]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory) -> Iterator[Path]:
    """The folder of the cluster's configuration and sockets."""
    folder = tmp_path_factory.mktemp("cluster") / "slurm"
    with pytest.MonkeyPatch.context() as patch, (folder.parent / "slurm.log").open("w") as log:
        patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        for name, value in HERE.items():
            patch.setenv(name, value)
        # Daemons keep what they inherit open: a pipe here would never end.
        subprocess.run(["bash", TOOLS / "up.sh", folder, "2"], check=True, stdout=log, stderr=log, timeout=60)
        yield folder
        subprocess.run(["scancel", "--signal=KILL", "--full", "--state=RUNNING"], timeout=60)
        subprocess.run(["bash", TOOLS / "down.sh", folder], stdout=subprocess.DEVNULL, timeout=60)
        for pid in (folder / "pids").read_text().split():
            with suppress(ProcessLookupError):  # a slurmd that waits for its controller does not heed SIGTERM
                os.kill(int(pid), signal.SIGKILL)


@pytest.fixture
def config(tmp_path, datasets) -> FitConfig:
    return FitConfig(
        run=str(tmp_path / "run"),
        model=ModelConfig(name="ViT-Ti-4-24"),
        data=DataConfig(sources=(Source(dataset=str(datasets / "train")),)),
        optim=OptimConfig(warmup=2),
        train=TrainConfig(steps=120, batch_size=8, threads=1, log_every=1, device="cpu"),
        checkpoint=CheckpointConfig(every=1000),
    )


def written(config: FitConfig, folder: Path) -> Path:
    recipe = folder / "recipe.json"
    recipe.write_text(json.dumps(to_dict(config)))
    return recipe


def said(*command: object) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def state(job: str) -> str:
    return subprocess.run(
        ["squeue", "-h", "-j", job, "-o", "%T"], capture_output=True, text=True, timeout=60
    ).stdout.strip()


def lines(run: Path) -> list[dict]:
    log = run / "log.jsonl"
    rows = log.read_text().splitlines(keepends=True) if log.exists() else []
    return [json.loads(row) for row in rows if row.endswith("\n")]


def started(run: Path) -> dict:
    (event,) = [row for row in lines(run) if row.get("event") == "start"]
    return event


def saved(run: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in (run / "checkpoints").glob("step-*"))


def wait_for(condition, what: str, seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"waited in vain for {what}"
        time.sleep(0.1)


def pids(job: str, rank: int) -> list[int]:
    """The processes of a rank of a job of two."""
    marks = {f"SLURM_JOB_ID={job}", f"SLURM_PROCID={rank}", "SLURM_STEP_NUM_TASKS=2"}
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if marks <= {*path.read_bytes().decode(errors="replace").split("\0")}:
                found.append(int(path.parent.name))
    assert found
    return found


def start_again(job: str, run: Path, starts: int) -> None:
    """Has a requeued job start now, the `starts`-th time in all."""

    def started() -> bool:
        # SLURM holds a requeued job back for two minutes. Asked too soon, it starts the job on nodes that still
        # refuse it as killed; asked too often, it never comes to starting it.
        time.sleep(5)
        subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"], capture_output=True, timeout=60)
        return len([row for row in lines(run) if "ranks" in row]) == starts

    wait_for(started, f"start {starts}")


def test_a_job_that_is_warned_and_preempted_ends_with_the_weights_of_a_plain_srun(slurm, tmp_path, config):
    whole = dataclasses.replace(config, run=str(tmp_path / "whole"))
    output = said("srun", "--nodes=2", "--ntasks=2", TRAINER, "fit", written(whole, tmp_path))
    assert output.startswith("120 steps, loss"), "both tasks of srun are one run, and rank 0 speaks for it"
    assert output.count("\n") == 1

    run = Path(config.run)
    submitted = said(TRAINER, "submit", written(config, tmp_path), "--nodes", 2, "--time", 20)
    job = submitted.split()[1].rstrip(",")
    name = submitted.split()[2].rstrip(":")
    again = subprocess.run(
        [TRAINER, "submit", written(config, tmp_path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert again.returncode == 2
    assert again.stderr.startswith(f"error: job {job}, {name}, of this run is ")

    wait_for(lambda: len(lines(run)) > 3, "the first steps")
    said("scancel", "--signal=USR1", job)  # what --signal does near the time limit
    wait_for(lambda: state(job) == "PENDING", "the requeue")
    (warned,) = saved(run)
    assert 3 <= warned < 120

    start_again(job, run, 2)
    wait_for(lambda: lines(run)[-1]["step"] > warned + 1, "steps after the warning")
    for pid in pids(job, 0) + pids(job, 1):  # so that it is not done before SLURM preempts it, which continues it
        os.kill(pid, signal.SIGSTOP)
    said("srun", "--partition=high", "--exclusive", "--nodes=2", "--ntasks=2", "true")
    wait_for(lambda: state(job) == "PENDING", "the requeue")
    preempted = saved(run)[-1]
    assert warned <= preempted < 120  # equal when SLURM's five seconds did not do for a save

    start_again(job, run, 3)
    wait_for(lambda: state(job) in ("", "COMPLETED"), "the end of the job")
    events = [(row["event"], row["step"], row["ranks"]) for row in lines(run) if "ranks" in row]
    assert events == [("start", 0, 2), ("resume", warned, 2), ("resume", preempted, 2)]
    assert [row["step"] for row in lines(run) if "event" not in row] == list(range(1, 121))
    told = (run / f"job-{job}.log").read_text()
    assert f"stopped by a signal after step {warned}" in told
    assert "DUE TO PREEMPTION" in told
    assert json.loads((run / "done.json").read_text())["step"] == 120
    assert (run / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()


def test_the_tasks_of_one_node_need_no_variable(slurm, tmp_path, config, monkeypatch):
    monkeypatch.delenv("MASTER_ADDR")
    short = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=3))
    output = said("srun", "--nodes=1", "--ntasks=2", TRAINER, "fit", written(short, tmp_path))
    assert output.startswith("3 steps, loss")
    assert started(Path(config.run))["ranks"] == 2


def test_a_batch_script_without_srun_is_one_process(slurm, tmp_path, config):
    short = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=3))
    output = said("salloc", "--nodes=2", "--ntasks=2", TRAINER, "fit", written(short, tmp_path))
    assert "3 steps, loss" in output
    assert started(Path(config.run))["ranks"] == 1


def test_a_task_that_is_killed_is_named_and_ends_the_job(slurm, tmp_path, config):
    run = Path(config.run)
    endless = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=100_000))
    job = said(TRAINER, "submit", written(endless, tmp_path), "--nodes", 2).split()[1].rstrip(",")
    wait_for(lambda: len(lines(run)) > 3, "the first steps")
    for pid in pids(job, 1):  # rank 1 and its reader
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wait_for(lambda: state(job) in ("", "FAILED"), "the end of the job")
    told = (run / f"job-{job}.log").read_text()
    assert "error: rank 0 cannot go on: rank 1 (process " in told
    assert "Traceback" not in told


def test_a_munge_that_does_not_run_is_told(slurm, tmp_path, config, monkeypatch):
    text = (slurm / "slurm.conf").read_text().replace(f"{slurm}/munge.sock", f"{slurm}/nothing.sock")
    (tmp_path / "slurm.conf").write_text(text)
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))
    command = [TRAINER, "submit", written(config, tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert "munge, which signs the requests of this machine, is not running here" in done.stderr
    assert done.stderr.count("\n") == 1
