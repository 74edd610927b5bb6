"""`clip-train` in processes of its own that start at once: they are forked from a server that has imported torch."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from clip_core.config import to_dict
from clip_train import FitConfig
from tests.support.distributed import forking


class Trainer:
    """A process of `clip-train WORDS`, with the methods of `subprocess.Popen`. `env` is added to the environment."""

    def __init__(self, *words: object, env: Mapping[str, str] | None = None) -> None:
        self._folder = TemporaryDirectory(prefix="trainer-")
        self._files = [Path(self._folder.name, name) for name in ("stdout", "stderr")]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **(env or {})}
        args = [*map(str, words)], environment, os.getcwd(), [*map(str, self._files)]
        self._process = forking().Process(target=_main, args=args)
        self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("clip-train", timeout or 0, *map(_read, self._files))
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """(stdout, stderr) when the process has ended."""
        self.wait(timeout)
        output, errors = map(_read, self._files)
        return output, errors


def start(config: FitConfig, folder: Path, env: Mapping[str, str] | None = None) -> Trainer:
    """`clip-train fit` of a config, whose file is written to `folder`."""
    recipe = folder / "recipe.json"
    recipe.write_text(json.dumps(to_dict(config)))
    return Trainer("fit", recipe, env=env)


def wait_for(condition: Callable[[], object], process: Trainer, seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.002)


def logged(run: Path, step: int) -> Callable[[], bool]:
    """A condition: the log of a run has this step."""
    log = run / "log.jsonl"
    return lambda: log.exists() and f'{{"step": {step}, "epoch"' in log.read_text()


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def _main(words: list[str], environment: dict[str, str], folder: str, files: list[str]) -> None:
    for number, name in enumerate(files, start=1):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = ["clip-train", *words]
    import torch

    from clip_train.cli import main

    torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))  # read when torch is imported, which was before
    main()
