"""The folder of a run: which config it belongs to, whether the run is finished, and its log.

config.json  log.jsonl  tensorboard/  checkpoints/  model.safetensors  done.json (written last)

The folder is on any fsspec file system.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from clip_core import ClipError
from clip_core.config import difference, from_dict, resolved
from clip_core.store import Store, is_claimed
from clip_train.checkpoints.layout import Folder
from clip_train.config import FitConfig
from clip_train.errors import ClipTrainError
from clip_train.lease import locked

_MODEL, _LOG = "model.safetensors", "log.jsonl"


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
        self._config = config
        self._store = Store(config.run)
        self._extends = False
        if self._store.local and os.path.isfile(self._store.path):
            raise ClipTrainError(f"run = {config.run!r} is a file: name a folder")
        if self._store.exists("config.json"):
            found = read_run(config.run)
            same = found.lineage() == config.lineage()
            self._extends = same and config.extend and found.fingerprint() != config.fingerprint()
            if found.fingerprint() != config.fingerprint() and not self._extends:
                longer = "give --extend to let it go on, " if same else ""
                first = difference(found.identity(), config.identity())
                raise ClipTrainError(
                    f"{self.url} holds another run: {first}; {longer}choose another run folder, or remove this one"
                )
        elif not Folder(config.run).steps():
            hidden = [name for name in self._store.list() if name.startswith(".")]
            is_claimed(self._store, self._config, what="training run", own=hidden)

    def check_new(self) -> None:
        """Raises ClipTrainError if the log of a folder without a checkpoint says that one was saved."""
        log = f"{self._store.url}/log.jsonl"
        lines = self._store.read_bytes("log.jsonl").splitlines(keepends=True) if self._store.exists("log.jsonl") else []
        saved = [row["step"] for row in map(_row_of, lines) if row.get("event") in ("checkpoint", "resume")]
        if saved:
            raise ClipTrainError(
                f"{log} says that step {max(saved)} was saved, but {self.url}/checkpoints has no checkpoint: put "
                f"it back, choose another run folder, or remove {self.url} to start the run again"
            )

    def model(self, *, ema: bool = False) -> str:
        """Returns the path or URL of the final weights, or of their average."""
        return f"{self._store.url}/{'model-ema' if ema else 'model'}.safetensors"

    @property
    def url(self) -> str:
        return self._store.url

    @property
    def local(self) -> Path | None:
        """The path, if the folder is not in an object store."""
        return Path(self._store.path) if self._store.local else None

    def locked(self) -> AbstractContextManager[None]:
        """Keeps a second process from training in the folder."""
        return locked(self._store)

    def write_config(self) -> None:
        """Writes config.json, which makes the folder belong to this config."""
        self._store.write_json("config.json", resolved(self._config))

    def finish(self, *, steps: int, loss: float, val_loss: float | None) -> FitResult:
        """Writes done.json beside the exported weights."""
        digest = self._digest()
        done = {"step": steps, "loss": loss, "val_loss": val_loss, "model_sha256": digest}
        self._store.write_json("done.json", done)
        return FitResult(steps=steps, loss=loss, val_loss=val_loss, model=self.model(), model_sha256=digest)

    def finished(self) -> FitResult | None:
        """Returns the result if the run is done. Raises ClipTrainError if its weights are not those it wrote."""
        if self._extends or not self._store.exists("done.json"):
            return None
        again = f"delete {self._store.url}/done.json to export again from the last checkpoint"
        try:
            done = self._store.read_json("done.json")
            result = FitResult(
                steps=done["step"],
                loss=done["loss"],
                val_loss=done["val_loss"],
                model=self.model(),
                model_sha256=done["model_sha256"],
            )
        except (ClipError, KeyError, TypeError) as error:
            raise ClipTrainError(f"{self._store.url}/done.json is damaged ({error}): {again}") from error
        if not self._store.exists(_MODEL) or self._digest() != result.model_sha256:
            raise ClipTrainError(f"{self.model()} is not the file that the finished run wrote: {again}")
        return result

    def _digest(self) -> str:
        with self._store.open(_MODEL) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


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
    """log.jsonl and TensorBoard of a run that continues after step `start`. Later entries are removed.

    In an object store, which has no files that grow, both are kept in a local folder and copied at each `sync`.
    """

    def __init__(self, folder: str | os.PathLike[str], start: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._store, self._open = Store(folder), ExitStack()
        temporary = "" if self._store.local else self._open.enter_context(TemporaryDirectory(prefix="clip-train-log-"))
        self._place = Path(temporary or self._store.path)
        if self._store.exists(_LOG):
            kept = [line for line in self._store.read_bytes(_LOG).splitlines(keepends=True) if _step_of(line) <= start]
            Store(self._place).write_bytes(_LOG, b"".join(kept))
        self._file = (self._place / _LOG).open("a", encoding="utf-8")
        self._board = SummaryWriter(str(self._place / "tensorboard"), purge_step=start + 1)

    def write(self, record: Mapping[str, Any]) -> None:
        """Appends one line. `record` contains a step. Raises ClipTrainError on a full disk."""
        try:
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()
        except OSError as error:
            raise ClipTrainError(f"cannot write {self._place / _LOG}: {error.strerror or error}") from error

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Adds values to TensorBoard."""
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def sync(self) -> None:
        """Makes the lines durable. Called before each checkpoint is committed, which relies on them."""
        self._board.flush()
        os.fsync(self._file.fileno())
        if not self._store.local:
            for path in (path for path in self._place.rglob("*") if path.is_file()):
                name = path.relative_to(self._place).as_posix()
                with self._store.trying("write", name):
                    self._store.fs.put_file(os.fspath(path), self._store.full(name))

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: object) -> None:
        with self._open:
            self._board.close()
            if not self._store.local:
                self.sync()
            self._file.close()


def _step_of(line: bytes) -> float:
    step: float = _row_of(line).get("step", float("inf"))
    return step


def _row_of(line: bytes) -> dict[str, Any]:
    """Parses a line of the log. Returns {} for one that was cut off by a kill."""
    try:
        row = json.loads(line) if line.endswith(b"\n") else {}
    except ValueError:
        return {}
    return row if isinstance(row, dict) else {}
