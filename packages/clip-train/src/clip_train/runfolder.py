"""The folder of a run: whose it is, whether the run is finished, and its log.

config.json  log.jsonl  tensorboard/  checkpoints/  model.safetensors  done.json (written last)
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clip_core import ClipError
from clip_core.config import difference, from_dict, resolved
from clip_core.files import sha256_of
from clip_core.store import Store
from clip_train.config import FitConfig
from clip_train.errors import ClipTrainError


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """A finished run."""

    steps: int
    """optimizer steps"""
    loss: float
    """training loss of the last step, over the global batch"""
    val_loss: float | None
    """contrastive loss on the held-out samples after the last step; None without val.sources"""
    model: str
    """the weights with their description: a file for clip_models.load_model"""
    model_sha256: str


class RunFolder:
    """The folder that `config.run` names. Making the object checks the folder and changes nothing.

    Raises ClipTrainError when it holds something else, or a run of another config.
    """

    def __init__(self, config: FitConfig) -> None:
        self.path = Path(config.run)
        self._config = config
        self._store = Store(self.path)
        if self.path.exists() and not self.path.is_dir():
            raise ClipTrainError(f"run = {config.run!r} is a file: name a folder")
        entries = self._store.list() if self.path.exists() else []
        if self._store.exists("config.json"):
            found = self._read_config()
            if found.fingerprint() != config.fingerprint():
                first = difference(found.identity(), config.identity())
                raise ClipTrainError(
                    f"{self.path} holds another run: {first}; choose another run folder, or remove this one"
                )
        elif not saved_states(self.path) and any(not name.startswith(".") for name in entries):
            raise ClipTrainError(
                f"{self.path} is not empty and holds no training run (it has {entries[0]!r}): choose another run folder"
            )

    def _read_config(self) -> FitConfig:
        try:
            stored = self._store.read_json("config.json")
            if not isinstance(stored, dict):
                raise ClipTrainError(f"it holds {stored!r}")
            stored.pop("fingerprint", None)
            return from_dict(FitConfig, stored, str(self.path / "config.json"))
        except ClipError as error:
            raise ClipTrainError(
                f"{self.path / 'config.json'} is no config of a training run: {error}; choose another run folder, or, "
                "when it was damaged, delete that file: checkpoints name their config themselves"
            ) from error

    def check_new(self) -> None:
        """To be called when there is no checkpoint. ClipTrainError when the log says that there has been one."""
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
        """The final weights."""
        return self.path / "model.safetensors"

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Holds the folder against a second process that would train in it, until this one ends in whatever way."""
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
        """From here on the folder is this run's."""
        self._store.write_json("config.json", resolved(self._config))

    def finish(self, *, steps: int, loss: float, val_loss: float | None) -> FitResult:
        """Writes done.json beside the exported weights."""
        digest = sha256_of(self.model)
        done = {"step": steps, "loss": loss, "val_loss": val_loss, "model_sha256": digest}
        self._store.write_json("done.json", done)
        return FitResult(steps=steps, loss=loss, val_loss=val_loss, model=str(self.model), model_sha256=digest)

    def finished(self) -> FitResult | None:
        """The result, when the run is done; ClipTrainError when its weights are not the ones it wrote."""
        if not self._store.exists("done.json"):
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
            raise ClipTrainError(f"{self.model} is not the file that the finished run wrote; {again}")
        return result


class RunLog:
    """log.jsonl and TensorBoard of a run that continues after step `start`: what is later is taken back."""

    def __init__(self, folder: Path, start: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        path = folder / "log.jsonl"
        if path.exists():
            kept = [line for line in path.read_bytes().splitlines(keepends=True) if _step_of(line) <= start]
            Store(folder).write_bytes("log.jsonl", b"".join(kept))
        self._file = path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1)

    def write(self, record: Mapping[str, Any]) -> None:
        """Appends one line; `record` has a step."""
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Adds values to TensorBoard under their names."""
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def sync(self) -> None:
        """Makes the lines durable; called before a checkpoint that counts on them."""
        self._board.flush()
        os.fsync(self._file.fileno())

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: object) -> None:
        self._board.close()
        self._file.close()


def saved_states(run: Path) -> list[Path]:
    """What shows that a folder is a run's, whatever else it lacks."""
    return list(run.glob("checkpoints/step-*/state.json"))


def _step_of(line: bytes) -> float:
    return _row_of(line).get("step", float("inf"))


def _row_of(line: bytes) -> dict[str, Any]:
    """A line of the log; empty for one that a kill cut short."""
    try:
        row = json.loads(line) if line.endswith(b"\n") else {}
    except ValueError:
        return {}
    return row if isinstance(row, dict) else {}
