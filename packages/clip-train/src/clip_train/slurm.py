"""Jobs of SLURM: the batch script of a run, and its submission."""

from __future__ import annotations

import getpass
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from clip_train.errors import ClipTrainError

WARNING_S = 300
"""seconds between SIGUSR1 and the time limit of a job; `watch.GRACE_S` of them are for saving"""
LEAST_S = 600  # the shortest time limit: SLURM may send the warning up to a minute early, and a run has to start first
ANSWER_S = 60.0  # seconds for an answer of the controller
SCRIPT = "job.sbatch"

_TEMPLATE = """\
#!/bin/bash
# Trains on SLURM, one task for each accelerator; 'clip-train submit' writes it, and by hand it is:
#
#   {by_hand}
#
# {warning_s} s before the time limit the trainer gets SIGUSR1, saves a checkpoint and exits with 75; the job is then
# queued again and continues. Preemption and 'scontrol requeue' do the same with SIGTERM; there SLURM itself queues it.
#
{options}

set -u
trainer=${{CLIP_TRAIN:-{trainer}}}
# Since SLURM 22.05, srun does not take it from sbatch.
[ -z "${{SLURM_CPUS_PER_TASK:-}}" ] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK

# Every machine has to see the files of the run.
srun --ntasks="$SLURM_NNODES" --ntasks-per-node=1 bash -c '
    test -r "$0" && exit
    echo "error: $(hostname) cannot read $0: it must be on storage that all nodes share" >&2
    exit 2' "$1" || exit 2

# Not torchrun: it stands between the trainer and SLURM, dies of SIGUSR1 and turns every exit code into 1.
# --wait: when one task has died, the others have a minute to notice before they are killed.
srun --kill-on-bad-exit=0 --wait=60 "$trainer" fit "$@"
code=$?

if [ "$code" -eq 75 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""

_ADVICE = (
    (
        r"munge",
        "munge, which signs the requests of this machine, is not running here or has another clock or key than the "
        "controller: ask for 'systemctl status munge' and the time on this machine",
    ),
    (
        r"unable to contact slurm controller|connection (refused|timed out)",
        "the controller of SLURM does not answer: see 'scontrol ping', or submit from another login node",
    ),
    (r"configuration file|cannot stat file", "SLURM is not set up on this machine: submit from a login node"),
    (r"partition", "'sinfo' lists the partitions: give --partition"),
    (r"account|qos", "'sacctmgr show associations' lists your accounts: give --account"),
    (r"node (configuration|count)|more processors|gres|cpu count", "'sinfo -o \"%P %D %c %G\"' lists what nodes have"),
)
"""(pattern of a message of sbatch or squeue, what to do)"""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a run asks of SLURM."""

    nodes: int = 1
    """nodes of the job"""
    gpus: int = 0
    """GPUs of each node, each with a rank of its own; 0 trains on CPUs with one rank on each node"""
    cpus: int = 0
    """CPUs of each rank; 0 leaves it to the cluster"""
    time: str = ""
    """time limit, e.g. 24:00:00 or 2-12; the run is saved and queued again before it; empty for the partition's"""
    partition: str = ""
    """partition of the job; empty for the default"""
    account: str = ""
    """account that pays; empty for the default"""
    options: tuple[str, ...] = ()
    """further options of sbatch, without their dashes: qos=high exclusive"""


@dataclass(frozen=True, kw_only=True)
class Job(Request):
    """A job. The defaults of `trainer`, `name` and `log` are those of infra/slurm/train.sbatch."""

    name: str = "clip-train"
    log: str = "%x-%j.log"
    """path of the output; %x is the name, %j the number of the job"""
    trainer: str = ".venv/bin/clip-train"
    """path of the command on the nodes"""

    def check(self) -> None:
        """Raises ClipTrainError for a value that sbatch would refuse, or that leaves no time to save."""
        for name, value, least in (("nodes", self.nodes, 1), ("gpus", self.gpus, 0), ("cpus", self.cpus, 0)):
            if value < least:
                raise ClipTrainError(f"--{name} {value} must be at least {least}")
        if self.time and seconds(self.time) < LEAST_S:
            raise ClipTrainError(
                f"--time {self.time} must be at least {LEAST_S // 60} minutes: a run is told to save {WARNING_S} s "
                "before its limit"
            )
        for option in self.options:
            if not re.fullmatch(r"[a-z][a-z-]+(=.*)?", option):
                raise ClipTrainError(
                    f"--options {option!r} must be options of sbatch, as in --options qos=high exclusive"
                )

    def script(self, recipe: str = "recipe.toml", path: str = "infra/slurm/train.sbatch") -> str:
        """Returns the batch script. Its arguments are a recipe and flags of `clip-train fit`."""
        given = {
            "--job-name": self.name,
            "--output": self.log,
            "--nodes": str(self.nodes),
            "--ntasks-per-node": str(max(self.gpus, 1)),
            "--gres": f"gpu:{self.gpus}" if self.gpus else "",
            "--cpus-per-task": str(self.cpus or ""),
            "--time": self.time,
            "--partition": self.partition,
            "--account": self.account,
            "--open-mode": "append",
            "--signal": f"USR1@{WARNING_S}",
        }
        more = [f"--{option}" for option in self.options]
        lines = [f"{name}={shlex.quote(value)}" for name, value in given.items() if value]
        return _TEMPLATE.format(
            by_hand=shlex.join(["sbatch", path, recipe, *(["--optim.lr", "1e-3"] if recipe == "recipe.toml" else [])]),
            warning_s=WARNING_S,
            options="\n".join(f"#SBATCH {line}" for line in (*lines, "--requeue", *more)),
            trainer=shlex.quote(self.trainer),
        )


def seconds(limit: str) -> float:
    """Returns the seconds of a time limit in a form of sbatch: 90, 90:00, 1:30:00, 2-12, 2-12:30 or 2-12:30:00."""
    if limit.upper() in ("UNLIMITED", "INFINITE"):
        return float("inf")
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", limit)
    if not found:
        raise ClipTrainError(f"--time {limit!r} must be minutes, hours:minutes:seconds or days-hours")
    days, *rest = (None if text is None else int(text) for text in found.groups())
    parts = [part for part in rest if part is not None]
    units = (3600, 60, 1) if days is not None or len(parts) == 3 else (60, 1)
    return 86_400 * (days or 0) + sum(part * unit for part, unit in zip(parts, units, strict=False))


def name_of(run: Path) -> str:
    """Returns a job name that no other run folder has: jobs of one folder are found by it."""
    words = re.sub(r"[^\w.-]+", "-", run.resolve().name)
    return f"clip-{words}-{hashlib.sha256(str(run.resolve()).encode()).hexdigest()[:6]}"


def trainer_path() -> str:
    """Returns the path of this environment's `clip-train`; relative if it is below the current folder."""
    path = Path(sys.executable).with_name("clip-train")
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def refuse_second(job: Job) -> None:
    """Raises ClipTrainError if a job of that name is waiting or running."""
    found = _ask("squeue", "--noheader", f"--name={job.name}", "--format=%i %T").split()
    if found:
        raise ClipTrainError(
            f"job {found[0]}, {job.name}, of this run is {found[1].lower()}: wait for it, or stop it with "
            f"'scancel --full --signal=TERM {found[0]}'"
        )


def refuse_private(run: Path) -> None:
    """Raises ClipTrainError if the folder is in the memory of this machine, which no node sees."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()]
    real = run.resolve()
    holding = [(len(place), kind, place) for _, place, kind, *_ in mounts if real.is_relative_to(place)]
    _, kind, place = max(holding, default=(0, "", ""))
    if kind in ("tmpfs", "ramfs", "devtmpfs"):
        raise ClipTrainError(
            f"run = {run} is in the memory of this machine ({place} is a {kind}): choose a folder on storage that all "
            "nodes share"
        )


def submit(script: Path, recipe: Path) -> str:
    """Submits the script and returns the number of the job. Raises ClipTrainError with what sbatch says."""
    return _ask("sbatch", "--parsable", str(script), str(recipe)).partition(";")[0].strip()


def _ask(command: str, *arguments: str) -> str:
    if not shutil.which(command):
        raise ClipTrainError(
            f"{command} is not on the PATH: submit from a login node of a SLURM cluster, write the script with "
            "--dry-run, or train here with 'clip-train fit'"
        )
    # What a job around this command has asked for is not meant for the new one; SLURM_CONF says where the cluster is.
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("SLURM_") or name == "SLURM_CONF"
    }
    try:
        done = subprocess.run(
            [command, *arguments], capture_output=True, text=True, timeout=ANSWER_S, env=environment, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ClipTrainError(
            f"{command} has not answered within {ANSWER_S:g} s: see 'scontrol ping', or submit from another login node"
        ) from error
    if done.returncode:
        said = " ".join(done.stderr.split()).replace(f"{command}: error: ", "")
        advice = next((what for pattern, what in _ADVICE if re.search(pattern, said, re.I)), "see 'man sbatch'")
        raise ClipTrainError(f"{command} refused, as {getpass.getuser()}: {said}; {advice}")
    return done.stdout
