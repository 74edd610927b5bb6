"""Runs of the pipeline scripts in processes of their own, small enough for a test."""

import hashlib
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
SHORT = (
    "--input.rows=200",
    "--plan.rows-per-unit=50",
    "--executor.workers=2",
    "--acquire.first-byte-timeout=2",
    "--acquire.total-timeout=3",
    "--fit.train.steps=16",
    "--fit.train.batch-size=16",
    "--fit.optim.warmup=4",
    "--fit.val.batch-size=8",
    "--fit.val.every=8",
    "--fit.checkpoint.every=4",
    "--fit.train.threads=1",
)


def free_port() -> int:
    """A port of the loopback interface that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def command(script: str, *args: object) -> list[str]:
    return [sys.executable, str(ROOT / "pipelines" / script), *map(str, args)]


def run(
    script: str, *args: object, cwd: Path | None = None, timeout: float = 200, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """A script's run to its end, whatever its exit code; `env` is added to the environment."""
    return subprocess.run(
        command(script, *args),
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=cwd,
        env={**os.environ, **(env or {})},
        check=False,
    )


def digests(folder: Path, *patterns: str) -> dict[str, str]:
    """SHA-256 of the files that match, by their names relative to the folder; what is under construction left out."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for pattern in patterns
        for path in sorted(folder.glob(pattern))
        if path.is_file() and ".tmp-" not in str(path)
    }


def alive(marker: str) -> list[int]:
    """Processes of this machine whose command line or environment holds the marker."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            text = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if marker.encode() in text and state != "Z" and int(entry.name) != os.getpid():
            found.append(int(entry.name))
    return found
