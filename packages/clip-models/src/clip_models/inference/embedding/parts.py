"""The folder of an embedding run: complete parts, and the config that they were made with."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from clip_core.store import TEMPORARY, Store
from clip_models.errors import ClipModelsError

MANIFEST = "manifest.json"
REJECTS = "rejects.jsonl"
UNUSED = "unused.jsonl"


@dataclass(frozen=True, kw_only=True)
class Part:
    """The record of a part. It is written last, so that a part with a record is complete."""

    number: int
    samples: int
    """Samples of the source, embedded and rejected."""
    source: str
    """Digest of their keys and captions."""
    rows: int = 0
    """Embedded ones."""
    truncated: int = 0
    """Captions that were longer than the model's context."""
    rejects: tuple[tuple[str, str, str], ...] = ()
    """(key, code, reason)"""
    files: Mapping[str, int] = field(default_factory=dict)
    """Size of each file; none before it is written."""


class PartFolder:
    """Opens or continues a run in `root`. Raises ClipModelsError if the folder holds a run of another config."""

    def __init__(self, root: str, config: Mapping[str, Any], fingerprint: str) -> None:
        self.root = Path(root)
        self._store = Store(self.root)
        self.fingerprint = fingerprint
        self.config = dict(config)
        self._claim()
        for left in self.root.rglob(f"{TEMPORARY}*"):
            left.unlink()

    def _claim(self) -> None:
        with self._store.trying("write in", ""):
            (self.root / "parts").mkdir(parents=True, exist_ok=True)
        found = self._store.read_json(MANIFEST) if self._store.exists(MANIFEST) else {}
        if not found and (other := [entry for entry in self._store.list() if entry != "parts"]):
            raise ClipModelsError(f"output {self.root} holds {other[0]}; choose an empty folder")
        if found.get("fingerprint") == self.fingerprint:
            return
        if not (found and self._store.list("parts")):  # a run that made nothing: a wrong flag, or an empty source
            self.write_manifest({"complete": False})
            return
        before = found.get("config", {})
        keys = [key for key in self.config if before.get(key) != self.config[key]] or ["version"]
        raise ClipModelsError(
            f"output {self.root} was made with another {keys[0]} ({before.get(keys[0])}, not"
            f" {self.config.get(keys[0])}); choose another folder, or remove this one"
        )

    def write_manifest(self, more: Mapping[str, Any]) -> None:
        self._store.write_json(MANIFEST, {"fingerprint": self.fingerprint, "config": self.config, **more})

    def read_part(self, number: int) -> Part | None:
        """Returns the record of a part; None if it is not done."""
        name = f"parts/{number:06}.json"
        if not self._store.exists(name):
            return None
        record = self._store.read_json(name)
        if record.pop("fingerprint") != self.fingerprint:
            return None
        record["rejects"] = tuple(map(tuple, record["rejects"]))
        part = Part(**record)
        whole = all(self._store.exists(file) and self._store.size(file) == size for file, size in part.files.items())
        return part if whole else None

    def write_part(self, part: Part, keys: Sequence[str], arrays: Mapping[str, np.ndarray], form: str) -> None:
        """Writes the files and the record of a part, but for `part.files`, which is known here.

        `arrays`: float [N, D] for image, text or both.
        """
        files = {}
        if form == "parquet":
            name = f"part-{part.number:06}.parquet"
            files[name] = self._write(name, lambda file: _write_parquet(file, keys, arrays))
        else:
            name = f"keys-{part.number:06}.json"
            data = json.dumps(list(keys), ensure_ascii=False, indent=0).encode()
            files[name] = self._write(name, lambda file: file.write(data))
            for kind, array in arrays.items():
                name = f"{kind}-{part.number:06}.npy"
                files[name] = self._write(name, lambda file, array=array: np.save(file, array))
        record = {**part.__dict__, "files": files, "fingerprint": self.fingerprint}
        self._store.write_json(f"parts/{part.number:06}.json", record)

    @contextmanager
    def list_unused(self) -> Iterator[Callable[[str, str], int]]:
        """Yields a function that writes (name, reason) of an unused item to a file, a JSON object a line."""
        with self._store.writing(UNUSED) as file:
            yield lambda name, reason: file.write(_json_line(name=name, reason=reason))

    def write_rejects(self, parts: int) -> None:
        """Writes one file of all rejected samples, a JSON object a line."""
        with self._store.writing(REJECTS) as file:
            for number in range(parts):
                part = self.read_part(number)
                assert part is not None
                for key, code, reason in part.rejects:
                    file.write(_json_line(key=key, code=code, reason=reason))

    def _write(self, name: str, write: Any) -> int:
        with self._store.trying("write", name), self._store.writing(name) as file:
            write(file)
            return file.tell()


def read_embeddings(folder: str | os.PathLike[str], what: str = "image") -> tuple[list[str], np.ndarray]:
    """Returns (keys, float [N, D]) of a finished run, in the order of its source. `what`: image or text."""
    root, store = Path(folder), Store(folder)
    if not store.exists(MANIFEST):
        raise ClipModelsError(f"{root} holds no embeddings: it has no {MANIFEST}")
    manifest = store.read_json(MANIFEST)
    if not manifest.get("complete"):
        raise ClipModelsError(f"{root} is not finished; run the same embed command again to continue")
    config = manifest["config"]
    made = config["what"]
    if what not in (("image", "text") if made == "both" else (made,)):
        raise ClipModelsError(f"{root} holds embeddings of {made}, not of {what}")
    keys: list[str] = []
    arrays = [np.empty((0, config["embed_dim"]), dtype=config["dtype"])]
    for number in range(manifest["parts"]):
        if config["format"] == "npy":
            keys += store.read_json(f"keys-{number:06}.json")
            arrays.append(np.load(root / f"{what}-{number:06}.npy"))
        else:
            column = f"{what}_embedding" if made == "both" else "embedding"
            found, array = _read_parquet(root / f"part-{number:06}.parquet", column)
            keys += found
            arrays.append(array)
    return keys, np.concatenate(arrays)


def _write_parquet(file: Any, keys: Sequence[str], arrays: Mapping[str, np.ndarray]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, Any] = {"key": pa.array(keys, pa.string())}
    for kind, array in arrays.items():
        name = "embedding" if len(arrays) == 1 else f"{kind}_embedding"
        columns[name] = pa.FixedSizeListArray.from_arrays(pa.array(array.reshape(-1)), array.shape[1])
    # Dictionaries and compression gain nothing on such numbers and cost time.
    pq.write_table(pa.table(columns), file, compression="none", use_dictionary=False)


def _read_parquet(path: Path, name: str) -> tuple[list[str], np.ndarray]:
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    column = table.column(name)
    flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return table.column("key").to_pylist(), flat.reshape(-1, column.type.list_size)


def _json_line(**fields: str) -> bytes:
    return json.dumps(fields, ensure_ascii=False).encode() + b"\n"
