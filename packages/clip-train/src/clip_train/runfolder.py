"""The folder of a run: which config it belongs to, whether the run is finished, and its log.

config.json  log.jsonl  tensorboard/  checkpoints/  model.safetensors  done.json (written last)
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from clip_core import ClipError
from clip_core.config import difference, from_dict, resolved
from clip_core.files import sha256_of
from clip_core.store import Store, is_claimed
from clip_train.checkpoints.layout import Folder
from clip_train.config import FitConfig
from clip_train.errors import ClipTrainError


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """A finished run."""

    steps: int
    """number of optimizer steps"""
    loss: float
    """training loss of the last step, over the global batch"""
    val_loss: float | None
    """loss on the held-out samples after the last step; None without val.sources"""
    model: str
    """path of the weights, which clip_models.load_model loads"""
    model_sha256: str


class RunFolder:
    """The folder that `config.run` names. The constructor checks the folder and changes nothing.

    Raises ClipError if the folder contains other files, or a run of another config.
    """

    def __init__(self, config: FitConfig) -> None:
        self.path = Path(config.run)
        self._config = config
        self._store = Store(self.path)
        self._extends = False
        if self.path.exists() and not self.path.is_dir():
            raise ClipTrainError(f"run = {config.run!r} is a file: name a folder")
        if self._store.exists("config.json"):
            found = read_run(config.run)
            same = found.lineage() == config.lineage()
            self._extends = same and config.extend and found.fingerprint() != config.fingerprint()
            if found.fingerprint() != config.fingerprint() and not self._extends:
                longer = "give --extend to let it go on, " if same else ""
                first = difference(found.identity(), config.identity())
                raise ClipTrainError(
                    f"{self.path} holds another run: {first}; {longer}choose another run folder, or remove this one"
                )
        elif not Folder(config.run).steps():
            hidden = [name for name in self._store.list() if name.startswith(".")]
            is_claimed(self._store, self._config, what="training run", own=hidden)

    def check_new(self) -> None:
        """Raises ClipTrainError if the log of a folder without a checkpoint says that one was saved."""
        log = self.path / "log.jsonl"
        lines = log.read_bytes().splitlines(keepends=True) if log.exists() else []
        saved = [row["step"] for row in map(_row_of, lines) if row.get("event") in ("checkpoint", "resume")]
        if saved:
            raise ClipTrainError(
                f"{log} says that step {max(saved)} was saved, but {self.path / 'checkpoints'} has no checkpoint: put "
                f"it back, choose another run folder, or remove {self.path} to start the run again"
            )

    @property
    def model(self) -> Path:
        """The path of the final weights."""
        return self.path / "model.safetensors"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps a second process from training in the folder. The lock ends with this process in any case."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise ClipTrainError(f"cannot write in run = {self.path}: {error.strerror or error}") from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(handle)
            raise ClipTrainError(f"another process is training in {self.path}: wait for it, or stop it") from error
        try:
            yield
        finally:
            os.close(handle)

    def write_config(self) -> None:
        """Writes config.json, which makes the folder belong to this config."""
        self._store.write_json("config.json", resolved(self._config))

    def finish(self, *, steps: int, loss: float, val_loss: float | None) -> FitResult:
        """Writes done.json beside the exported weights."""
        digest = sha256_of(self.model)
        done = {"step": steps, "loss": loss, "val_loss": val_loss, "model_sha256": digest}
        self._store.write_json("done.json", done)
        return FitResult(steps=steps, loss=loss, val_loss=val_loss, model=str(self.model), model_sha256=digest)

    def finished(self) -> FitResult | None:
        """Returns the result if the run is done. Raises ClipTrainError if its weights are not those it wrote."""
        if self._extends or not self._store.exists("done.json"):
            return None
        again = f"delete {self.path / 'done.json'} to export again from the last checkpoint"
        try:
            done = self._store.read_json("done.json")
            result = FitResult(
                steps=done["step"],
                loss=done["loss"],
                val_loss=done["val_loss"],
                model=str(self.model),
                model_sha256=done["model_sha256"],
            )
        except (ClipError, KeyError, TypeError) as error:
            raise ClipTrainError(f"{self.path / 'done.json'} is damaged ({error}): {again}") from error
        if not self.model.exists() or sha256_of(self.model) != result.model_sha256:
            raise ClipTrainError(f"{self.model} is not the file that the finished run wrote: {again}")
        return result


def read_run(run: str) -> FitConfig:
    """Returns the config of a run folder. Raises ClipTrainError if it has none."""
    store = Store(run)
    name = f"{store.url}/config.json"
    try:
        stored = store.read_json("config.json")
        if not isinstance(stored, dict):
            raise ClipTrainError(f"{stored!r} is not a table")
        stored.pop("fingerprint", None)
        return replace(from_dict(FitConfig, stored, name), run=run)  # the folder may have been moved
    except ClipError as error:
        raise ClipTrainError(
            f"{name} is not the config of a training run: {error}; choose another run folder, or delete that file if "
            "it is damaged: the checkpoints still identify their config"
        ) from error


class RunLog:
    """log.jsonl and TensorBoard of a run that continues after step `start`. Later entries are removed."""

    def __init__(self, folder: Path, start: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        path = folder / "log.jsonl"
        if path.exists():
            kept = [line for line in path.read_bytes().splitlines(keepends=True) if _step_of(line) <= start]
            Store(folder).write_bytes("log.jsonl", b"".join(kept))
        self._file = path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1)

    def write(self, record: Mapping[str, Any]) -> None:
        """Appends one line. `record` contains a step."""
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Adds values to TensorBoard."""
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def sync(self) -> None:
        """Makes the lines durable. Called before each checkpoint, which relies on them."""
        self._board.flush()
        os.fsync(self._file.fileno())

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: object) -> None:
        self._board.close()
        self._file.close()


def _step_of(line: bytes) -> float:
    return _row_of(line).get("step", float("inf"))


def _row_of(line: bytes) -> dict[str, Any]:
    """Parses a line of the log. Returns {} for one that was cut off by a kill."""
    try:
        row = json.loads(line) if line.endswith(b"\n") else {}
    except ValueError:
        return {}
    return row if isinstance(row, dict) else {}
