"""`clip-train submit` up to the cluster: the script, and what is refused before anything is submitted."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from clip_train import ClipTrainError
from clip_train.slurm import Job, name_of, seconds
from tests.clip_train.test_cli import call, recipe, refused  # noqa: F401

ROOT = Path(__file__).parents[2]
README = ROOT / "packages" / "clip-train" / "README.md"


def tool(folder: Path, name: str, text: str) -> None:
    """A program of the name that does what a line of shell says."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def cluster(tmp_path, monkeypatch) -> Path:
    """A folder on the PATH with a squeue that knows no job, and an sbatch that notes its arguments."""
    folder = tmp_path / "bin"
    tool(folder, "squeue", "exit 0")
    tool(folder, "sbatch", f'echo "$@" > {tmp_path}/asked; env > {tmp_path}/environment; echo "42;cluster"')
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return folder


def test_the_script_in_infra_is_the_one_of_a_standard_job():
    assert (ROOT / "infra/slurm/train.sbatch").read_text() == Job(nodes=2, gpus=8, time="24:00:00").script()
    subprocess.run(["bash", "-n", ROOT / "infra/slurm/train.sbatch"], check=True, timeout=60)


def test_the_dry_run_prints_the_script_of_the_docs_and_leaves_nothing(monkeypatch, capsys, recipe, tmp_path):  # noqa: F811
    (command,) = re.findall(r"^clip-train (submit .*--dry-run.*)$", README.read_text(encoding="utf-8"), re.MULTILINE)
    words = command.split()
    shown = re.search(r"--dry-run\n\n((?:#SBATCH .*\n)+)", README.read_text(encoding="utf-8"))
    monkeypatch.chdir(tmp_path)
    flags = ["--run", "runs/first", "--train.batch-size", "64"]
    code, output, errors = call(monkeypatch, capsys, words[0], recipe, *words[2:], *flags)
    assert (code, errors) == (0, "")
    lines = [line for line in output.splitlines() if line.startswith("#SBATCH")]
    expected = [line.replace("xxxxxx", name_of(Path("runs/first"))[-6:]) for line in shown[1].splitlines()]
    assert lines == expected
    assert not (tmp_path / "runs").exists()


def test_a_job_gets_the_resolved_config_of_its_run(monkeypatch, capsys, recipe, tmp_path, cluster):  # noqa: F811
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "1")
    monkeypatch.setenv("SLURM_CONF", "/etc/other.conf")
    flags = ["--nodes", "4", "--options", "qos=high", "exclusive", "--", "--optim.lr", "1e-3"]
    code, output, errors = call(monkeypatch, capsys, "submit", recipe, *flags)
    assert code == 0, errors
    run = tmp_path / "run"
    assert output == f"job 42, {name_of(run)}: its output is {run}/job-42.log\n"
    assert (tmp_path / "asked").read_text().split() == ["--parsable", f"{run}/job.sbatch", f"{run}/config.json"]
    assert '"lr": 0.001' in (run / "config.json").read_text()
    assert "#SBATCH --qos=high\n#SBATCH --exclusive\n" in (run / "job.sbatch").read_text()
    environment = (tmp_path / "environment").read_text()
    assert "SLURM_MEM_PER_NODE" not in environment
    assert "SLURM_CONF=/etc/other.conf" in environment
    # The run can be continued with the same config, and is refused with another.
    assert call(monkeypatch, capsys, "submit", recipe, *flags)[0] == 0
    assert "optim.lr is 0.001 there and 0.0005 now" in refused(monkeypatch, capsys, "submit", recipe)


def test_a_run_that_has_a_job_is_not_submitted_again(monkeypatch, capsys, recipe, tmp_path, cluster):  # noqa: F811
    name = name_of(tmp_path / "run")
    tool(cluster, "squeue", f'case "$*" in *--name={name}\\ *) echo "41 RUNNING";; esac')
    line = refused(monkeypatch, capsys, "submit", recipe)
    assert line.startswith(f"error: job 41, {name}, of this run is running")
    assert not (tmp_path / "asked").exists()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("said", "advice"),
    [
        ("sbatch: error: Munge encode failed: Failed to access socket", "munge, which signs"),
        ("sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)", "ping"),
        ("sbatch: error: s_p_parse_file: cannot stat file /etc/slurm.conf: No such file", "submit from a login node"),
        ("sbatch: error: invalid partition specified: nowhere", "--partition"),
        ("sbatch: error: Invalid account or account/partition combination specified", "partition"),
        ("sbatch: error: Batch job submission failed: Requested node configuration is not available", "sinfo -o"),
    ],
)
def test_what_sbatch_refuses_is_told_with_advice(monkeypatch, capsys, recipe, cluster, said, advice):  # noqa: F811
    tool(cluster, "sbatch", f'echo "{said}" >&2; exit 1')
    line = refused(monkeypatch, capsys, "submit", recipe)
    assert line.startswith("error: sbatch refused")
    assert said.removeprefix("sbatch: error: ") in line
    assert advice in line.partition(said.removeprefix("sbatch: error: "))[2]


def test_a_machine_without_slurm(monkeypatch, capsys, recipe, tmp_path):  # noqa: F811
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "squeue is not on the PATH: submit from a login node" in refused(monkeypatch, capsys, "submit", recipe)
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="needs /dev/shm")
def test_a_run_folder_in_memory(monkeypatch, capsys, recipe, cluster):  # noqa: F811
    line = refused(monkeypatch, capsys, "submit", recipe, "--run", "/dev/shm/clip-train-test/run")
    assert "/dev/shm is a tmpfs" in line
    assert not Path("/dev/shm/clip-train-test").exists()


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--nodes", "0"], "--nodes 0 must be at least 1"),
        (["--gpus", "-1"], "--gpus -1"),
        (["--time", "9"], "--time 9 must be at least 10 minutes"),
        (["--time", "tomorrow"], "--time 'tomorrow'"),
        (["--nodes", "3"], "train.batch_size = 8 is not divisible by 3 ranks"),
        (["--options", "qos=high", "4"], "--options '4'"),
    ],
)
def test_a_job_that_cannot_be(monkeypatch, capsys, recipe, cluster, flags, named):  # noqa: F811
    assert named in refused(monkeypatch, capsys, "submit", recipe, *flags)


@pytest.mark.parametrize(
    ("limit", "expected"),
    [("90", 5400), ("90:30", 5430), ("1:30:00", 5400), ("2-12", 216_000), ("2-12:30", 217_800), ("1-0:0:5", 86_405)],
)
def test_time_limits_in_the_forms_of_sbatch(limit, expected):
    assert seconds(limit) == expected
    assert seconds("UNLIMITED") == float("inf")
    with pytest.raises(ClipTrainError):
        seconds(f"{limit}:1:1:1")


def test_each_run_folder_has_a_job_name_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert name_of(Path("a/run")) == name_of(tmp_path / "a" / "run")
    assert name_of(Path("a/run")) != name_of(Path("b/run"))
    assert re.fullmatch(r"clip-a-b-[0-9a-f]{6}", name_of(Path("a b")))


def test_the_image_has_every_package_and_only_files_that_exist():
    text = (ROOT / "infra/docker/Dockerfile").read_text()
    copied = re.findall(r"^COPY (packages/\S+/pyproject.toml) ", text, re.MULTILINE)
    assert sorted(copied) == sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("packages/*/pyproject.toml"))
    sources = [word for line in re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE) for word in line.split()]
    assert all((ROOT / source).exists() for source in sources)
    required = re.search(r'required-version = ">=([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    assert f'"uv>={required[1]},<1"' in text
