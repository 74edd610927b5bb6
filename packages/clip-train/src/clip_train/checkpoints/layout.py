"""The files of a run's checkpoints, on any fsspec file system. This module does not import torch.

checkpoints/step-00000100/
    00000-of-00002.1f3a9c20.safetensors   the tensors, or parts of tensors, that rank 0 of 2 has written
    00001-of-00002.1f3a9c20.safetensors
    tensors.json   type, shape and pieces of every tensor
    state.json     step, stream, metrics, size and SHA-256 of all files; written last
checkpoints/damaged-step-00000200-01234567/   a damaged one that was set aside

A folder without state.json is no checkpoint: its save was not finished. The number in the names of the files is drawn
when a process starts, so a process that outlives its run does not write into the files of the next one.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from clip_core import ClipError
from clip_core.files import sync
from clip_core.store import Store
from clip_train.errors import ClipTrainError

FORMAT = 3
STATE, TENSORS = "state.json", "tensors.json"
_STEP = "step-"


class Damaged(Exception):
    """A checkpoint is not what was saved; the message says what is wrong."""


@dataclass(frozen=True)
class Pieces:
    """A saved tensor and the pieces that it is stored in."""

    dtype: str
    """in the words of safetensors: F32, BF16, I64, …"""
    shape: tuple[int, ...]
    pieces: tuple[tuple[tuple[int, ...], tuple[int, ...], int], ...]
    """(offsets, sizes, number of the file) of each piece"""


class Folder:
    """The checkpoints of one run."""

    def __init__(self, run: str | os.PathLike[str]) -> None:
        self.store = Store(f"{str(run).rstrip('/')}/checkpoints")

    def steps(self) -> list[int]:
        """Returns the steps whose save was finished, oldest first, without reading them."""
        return [step for step in self._named() if self.store.exists(f"{name_of(step)}/{STATE}")]

    def where(self, step: int) -> str:
        """Returns the path or URL of a checkpoint, for messages."""
        return f"{self.store.url}/{name_of(step)}"

    def read_state(self, step: int) -> dict[str, Any]:
        """Returns state.json. Raises Damaged, and ClipTrainError for another format."""
        data = self.read(step, STATE)
        try:
            state: dict[str, Any] = json.loads(data)
            digest, version = state["sha256"], state["format"]
        except (ValueError, KeyError, TypeError) as error:
            raise Damaged(
                f"{STATE} is not the description of a checkpoint ({type(error).__name__}: {error})"
            ) from error
        if digest != digest_of(state):
            raise Damaged(f"{STATE} has changed since it was saved")
        if version != FORMAT:
            newer = isinstance(version, int) and version > FORMAT
            advice = (
                "a newer clip-train wrote it: upgrade" if newer else "continue it with the clip-train that wrote it"
            )
            raise ClipTrainError(
                f"the checkpoint {self.where(step)} has format {version!r}, and this version reads {FORMAT}; {advice}"
            )
        if state["step"] != step:
            raise Damaged(f"it holds step {state['step']}")
        return state

    def read_tensors(self, state: Mapping[str, Any]) -> dict[str, Pieces]:
        """Returns the table of the tensors. Raises Damaged."""
        data = self.read(state["step"], TENSORS)
        if describe(data) != state["files"].get(TENSORS):
            raise Damaged(f"{TENSORS} has changed since it was saved")
        return {
            key: Pieces(dtype, tuple(shape), tuple((tuple(at), tuple(sizes), file) for at, sizes, file in pieces))
            for key, (dtype, shape, pieces) in json.loads(data).items()
        }

    def read(self, step: int, name: str) -> bytes:
        """Returns the bytes of a small file. Raises Damaged if it is missing, and ClipError if it cannot be read."""
        try:
            return self.store.read_bytes(f"{name_of(step)}/{name}")
        except ClipError as error:
            if isinstance(error.__cause__, (FileNotFoundError, NotADirectoryError)):
                raise Damaged(f"{name} is missing") from error
            raise

    def commit(
        self, step: int, tensors: Mapping[str, Pieces], files: Mapping[str, Any], state: Mapping[str, Any]
    ) -> int:
        """Makes a checkpoint of the files that all ranks have written. Returns its size in bytes."""
        table = {key: [each.dtype, each.shape, each.pieces] for key, each in tensors.items()}
        data = json.dumps(table, separators=(",", ":")).encode()
        self.store.write_bytes(f"{name_of(step)}/{TENSORS}", data)
        described = {**files, TENSORS: describe(data)}
        whole = {"format": FORMAT, "step": step, **state, "files": described}
        self._sync(name_of(step))
        self.store.write_json(f"{name_of(step)}/{STATE}", {**whole, "sha256": digest_of(whole)})
        self._sync(name_of(step))
        self._sync("")
        return sum(each["bytes"] for each in described.values())

    def tidy(self, step: int, *, keep: int, keep_every: int) -> None:
        """Removes what the save of `step` replaces: older checkpoints, and the rest of saves that were not finished.

        Kept are the newest `keep`, those whose step is a multiple of `keep_every` (0: none), and `state["kept"]` ones.
        """
        saved = self.steps()
        kept = {*saved[-keep:], *(each for each in saved if keep_every and each % keep_every == 0)}
        for other in self._named():
            if other not in kept and not (other in saved and self._is_pinned(other)):
                self.remove(other)
        state = self.read_state(step)
        for name in self._entries(step):
            if name not in (STATE, *state["files"]):
                self.store.remove(f"{name_of(step)}/{name}")

    def remove(self, step: int) -> None:
        """Removes a checkpoint. A kill during the removal leaves a folder that is none."""
        self.store.remove(f"{name_of(step)}/{STATE}")
        with self.store.trying("remove", name_of(step)), suppress(FileNotFoundError):
            self.store.fs.rm(self.store.full(name_of(step)), recursive=True)

    def set_aside(self, step: int, why: str = "damaged") -> str:
        """Renames a checkpoint, so that it is none any more. Returns its new path or URL."""
        aside = f"{why}-{name_of(step)}-{uuid.uuid4().hex[:8]}"
        old, new = self.store.full(name_of(step)), self.store.full(aside)
        with self.store.trying("rename", name_of(step)):
            if self.store.local:
                os.rename(old, new)
            else:  # there are only files, and the folder is a checkpoint as long as it has state.json
                for name in sorted(self._entries(step), key=lambda name: name != STATE):
                    self.store.fs.mv(f"{old}/{name}", f"{new}/{name}")
        return f"{self.store.url}/{aside}"

    def _is_pinned(self, step: int) -> bool:
        try:
            return bool(self.read_state(step).get("pinned"))
        except (Damaged, ClipError):
            return False

    def _named(self) -> list[int]:
        """Returns the steps of all folders with the name of a checkpoint."""
        numbers = (name.removeprefix(_STEP) for name in self.store.list() if name.startswith(_STEP))
        return sorted(int(number) for number in numbers if number.isdecimal() and number == f"{int(number):08d}")

    def _entries(self, step: int) -> Collection[str]:
        """Returns the names in a checkpoint's folder, also those of unfinished files."""
        folder = self.store.full(name_of(step))
        with self.store.trying("list", name_of(step)):
            self.store.fs.invalidate_cache(folder)
            entries = self.store.fs.ls(folder, detail=True)
        return [entry["name"].rsplit("/", 1)[-1] for entry in entries if entry["type"] == "file"]

    def _sync(self, name: str) -> None:
        if self.store.local:
            with self.store.trying("write", name):
                sync(self.store.full(name))


def name_of(step: int) -> str:
    """Returns the name of a checkpoint's folder."""
    return f"{_STEP}{step:08d}"


def describe(data: bytes) -> dict[str, Any]:
    """Returns the entry of a file in state.json."""
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def digest_of(state: Mapping[str, Any]) -> str:
    """Returns the SHA-256 of a state.json without its own entry."""
    rest = {key: value for key, value in state.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
