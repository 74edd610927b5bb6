"""The README's commands, as printed, against a real S3 server, a real Ray cluster and a real image server."""

import contextlib
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import venv
from pathlib import Path

import pytest

from clip_data.dataset import Dataset
from clip_data.demo import LoopbackServer, write_table
from clip_data.verify import verify
from tests.support.pipeline import ROOT, free_port

README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", README, re.S) for line in block.splitlines() if line]
BIN = Path(sys.executable).parent
# What the printed commands cannot know: the images of this test are on loopback, and some of them stall.
LOOPBACK = ("--allow-private", "True", "--first-byte-timeout", "2", "--total-timeout", "3", "--per-host", "64")
RUN = """
run = "runs/mine"
model.name = "ViT-Ti-4-24"
data.sources = [{ dataset = "s3://my-bucket/dataset", selection = "clean" }]
train = { steps = 4, batch_size = 16, precision = "fp32" }
"""
EVALUATION = """
out = "runs/mine/eval"
[[benchmarks]]
name = "retrieval"
kind = "retrieval"
dataset = "s3://my-bucket/dataset"
selection = "clean"
overlap = "allow" # a few dozen samples: none are held out
"""


def printed(start: str) -> list[str]:
    """The one command of the README that starts so, with `uv run` resolved to this environment."""
    (found,) = [line for line in COMMANDS if line.startswith(start)]
    words = shlex.split(found.removeprefix("uv run "))
    return [sys.executable, *words] if words[0].endswith(".py") else [str(BIN / words[0]), *words[1:]]


def run(words: list[str], folder: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def wait_for(port: int, process: subprocess.Popen, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < end:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"nothing listens on port {port}")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a checkout's view, a bucket, and a dataset that the README's first data command has built."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "pipelines").symlink_to(ROOT / "pipelines")
    port = free_port()
    server = subprocess.Popen(
        [BIN / "moto_server", "-H", "127.0.0.1", "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    environment = {
        **os.environ,
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    before = dict(os.environ)
    os.environ.update(environment)
    try:
        wait_for(port, server)
        import s3fs

        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem().mkdir("my-bucket")
        with LoopbackServer(port=0) as images:
            write_table(folder / "my.parquet", rows=200, base_url=images.base_url)
            build = [*printed("uv run pipelines/build_shards.py"), "--rows-per-unit", "100"]
            flags = [word.replace("--", "--acquire.") if word.startswith("--") else word for word in LOOPBACK]
            said = run([*build, *flags], folder, environment)
            assert re.search(r"1\d\d of 200 URLs are now samples in s3://my-bucket/dataset", said)
            yield folder, environment
    finally:
        server.kill()
        server.wait()
        os.environ.clear()
        os.environ.update(before)


def test_data_training_and_evaluation_from_a_bucket(place):
    folder, environment = place
    assert "acquire" in run(printed("uv run clip-data status"), folder, environment)
    assert "selection clean" in run(printed("uv run pipelines/filter_shards.py"), folder, environment)
    assert verify("s3://my-bucket/dataset", deep=True) == []
    (folder / "my_run.toml").write_text(RUN)
    (folder / "my_evaluation.toml").write_text(EVALUATION)
    assert "runs/mine/model.safetensors" in run(printed("uv run clip-train fit"), folder, environment)
    assert "image_to_text_recall@1" in run(printed("uv run clip-eval run"), folder, environment)
    assert "scores of 2 shards" in run(printed("uv run pipelines/score_clip.py"), folder, environment)


def test_a_unit_fetched_again_on_a_ray_cluster_has_the_same_bytes(place):
    folder, environment = place
    dataset = Dataset.open("s3://my-bucket/dataset")
    unit = dataset.units[1]
    files = dataset.record("acquire", unit)["files"]
    dataset.store.fs.rm_file(dataset.store.full(f"commits/acquire/{unit.name}.json"))
    for name in files:
        dataset.store.fs.rm_file(dataset.store.full(name))
    port = free_port()
    ours = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "of-this-test-0123456789", "RAY_CPUS": "2"}
    environment = {**environment, **ours, "RAY_PORT": str(port), "RAY_NODE_IP": "127.0.0.1"}
    head = subprocess.Popen(
        [ROOT / "infra/ray/cluster.sh", "head"],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        wait_for(port, head)
        words = printed("uv run clip-data acquire")
        words[words.index("--executor.ray-address") + 1] = f"127.0.0.1:{port}"
        assert "200 rows" in run([*words, *LOOPBACK], folder, environment)
    finally:
        head.terminate()  # what Ctrl-C or the end of a batch job does: the cluster goes with its command
        try:
            head.wait(timeout=30)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(head.pid, signal.SIGKILL)
    dataset.store.fs.invalidate_cache()
    assert dataset.record("acquire", unit)["files"] == files
    assert verify("s3://my-bucket/dataset", deep=True) == []


def test_the_first_block_needs_python_alone(tmp_path):
    """uv of the package index, with nothing else on the PATH, runs the two commands in this checkout."""
    install, *commands = COMMANDS[:3]
    assert commands == ["uv run pipelines/end_to_end.py", "uv run pytest"]
    venv.create(tmp_path / "python", with_pip=True, symlinks=True)
    # The environment of this test stands for the one that uv would make, which takes minutes: .ci/run does that.
    ours = {"PATH": str(tmp_path / "python/bin"), "UV_PROJECT_ENVIRONMENT": sys.prefix, "UV_NO_SYNC": "1"}
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")} | ours
    run(shlex.split(install), tmp_path, environment)
    assert "--input.rows" in run([*shlex.split(commands[0]), "--help"], ROOT, environment)
    assert "pytest" in run([*shlex.split(commands[1]), "--version"], ROOT, environment)


def test_every_command_names_something_that_exists():
    for line in COMMANDS:
        words = shlex.split(line)
        if words[0] == "pip":
            assert words == ["pip", "install", "uv"]
        elif words[0] == "sbatch":
            assert (ROOT / words[1]).is_file()
        elif words[2].endswith(".py"):
            assert (ROOT / words[2]).is_file()
        else:
            assert (BIN / words[2]).is_file()
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_ci_runs_the_two_commands():
    script = (ROOT / ".ci" / "run").read_text()
    assert "uv run pytest" in script
    assert "uv run pipelines/end_to_end.py" in script
