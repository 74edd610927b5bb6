"""The folder of an embedding run: parts that are there as a whole or not at all, and what they were made with."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from clip_models.errors import ClipModelsError

MANIFEST = "manifest.json"
REJECTS = "rejects.jsonl"
UNUSED = "unused.jsonl"
_TEMPORARY = ".unfinished"


@dataclass(frozen=True, kw_only=True)
class Part:
    """What a part was made of. Its record is written last, so that a part with a record is whole."""

    number: int
    samples: int
    """Samples of the source, embedded and rejected."""
    source: str
    """Digest of their keys and captions."""
    rows: int
    """Embedded ones."""
    truncated: int
    """Captions that were longer than the model's context."""
    rejects: tuple[tuple[str, str, str], ...]
    """(key, code, reason)"""
    files: Mapping[str, int]
    """Size of each file."""


class UnusedList:
    """Writes names and counts reasons."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.counts: Counter[str] = Counter()

    def add(self, name: str, reason: str) -> None:
        self.counts[reason] += 1
        self._file.write(json.dumps({"name": name, "reason": reason}, ensure_ascii=False).encode() + b"\n")


class PartFolder:
    """Opens or continues a run in `root`. ClipModelsError if the folder holds a run of another configuration."""

    def __init__(self, root: str, config: Mapping[str, Any], fingerprint: str) -> None:
        self.root = Path(root)
        self.fingerprint = fingerprint
        self.config = dict(config)
        self._claim()
        for left in self.root.rglob(f"*{_TEMPORARY}"):
            left.unlink()

    def _claim(self) -> None:
        try:
            (self.root / "parts").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ClipModelsError(f"output {self.root} cannot be made: {error.strerror}") from error
        path = self.root / MANIFEST
        if not path.exists():
            own = ("parts", MANIFEST + _TEMPORARY)
            if other := sorted(entry.name for entry in self.root.iterdir() if entry.name not in own):
                raise ClipModelsError(f"output {self.root} holds {other[0]}; choose an empty folder")
            self.write_manifest({"complete": False})
            return
        found = _read_json(path)
        if found.get("fingerprint") != self.fingerprint:
            before = found.get("config", {})
            keys = [key for key in self.config if before.get(key) != self.config[key]] or ["version"]
            raise ClipModelsError(
                f"output {self.root} was made with another {keys[0]} ({before.get(keys[0])}, not"
                f" {self.config.get(keys[0])}); choose another folder, or remove this one"
            )

    def write_manifest(self, more: Mapping[str, Any]) -> None:
        self._write_json(MANIFEST, {"fingerprint": self.fingerprint, "config": self.config, **more})

    def read_part(self, number: int) -> Part | None:
        """The record of a part; None if it is not done."""
        path = self.root / "parts" / f"{number:06}.json"
        if not path.exists():
            return None
        record = _read_json(path)
        if record.pop("fingerprint") != self.fingerprint:
            return None
        record["rejects"] = tuple(map(tuple, record["rejects"]))
        part = Part(**record)
        for name, size in part.files.items():
            file = self.root / name
            if not file.exists() or file.stat().st_size != size:
                return None
        return part

    def write_part(self, part: Part, keys: Sequence[str], arrays: Mapping[str, np.ndarray], form: str) -> None:
        """`arrays`: float [N, D] for image, text or both. Keeps `part.files` itself."""
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
        self._write_json(f"parts/{part.number:06}.json", record)

    @contextmanager
    def list_unused(self) -> Iterator[UnusedList]:
        """A file of all that is in the source and in no sample, a JSON object a line."""
        with open(self.root / (UNUSED + _TEMPORARY), "wb") as file:
            yield UnusedList(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(file.name, self.root / UNUSED)

    def write_rejects(self, parts: int) -> None:
        """One file of all rejected samples, a JSON object a line."""

        def lines(file: Any) -> None:
            for number in range(parts):
                part = self.read_part(number)
                assert part is not None
                for key, code, reason in part.rejects:
                    entry = {"key": key, "code": code, "reason": reason}
                    file.write(json.dumps(entry, ensure_ascii=False).encode() + b"\n")

        self._write(REJECTS, lines)

    def _write_json(self, name: str, value: Any) -> None:
        data = json.dumps(value, ensure_ascii=False, indent=1).encode() + b"\n"
        self._write(name, lambda file: file.write(data))

    def _write(self, name: str, write: Any) -> int:
        """Written beside, made durable, then put into place: a name is there with all of its content or not at all."""
        path = self.root / name
        temporary = path.with_name(path.name + _TEMPORARY)
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
            size = file.tell()
        os.replace(temporary, path)
        return size


def read_embeddings(folder: str | os.PathLike[str], what: str = "image") -> tuple[list[str], np.ndarray]:
    """(keys, float [N, D]) of a finished run, in the order of its source. `what`: image or text."""
    root = Path(folder)
    if not (root / MANIFEST).exists():
        raise ClipModelsError(f"{root} holds no embeddings: it has no {MANIFEST}")
    manifest = _read_json(root / MANIFEST)
    if not manifest.get("complete"):
        raise ClipModelsError(f"{root} is not finished; run the same embed command again to continue")
    made = manifest["config"]["what"]
    if what not in (("image", "text") if made == "both" else (made,)):
        raise ClipModelsError(f"{root} holds embeddings of {made}, not of {what}")
    keys: list[str] = []
    arrays = [np.empty((0, manifest["config"]["embed_dim"]), dtype=manifest["config"]["dtype"])]
    for number in range(manifest["parts"]):
        if manifest["config"]["format"] == "npy":
            keys += _read_json(root / f"keys-{number:06}.json")
            arrays.append(np.load(root / f"{what}-{number:06}.npy"))
        else:
            found, array = _read_parquet(root / f"part-{number:06}.parquet", what if made == "both" else "")
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


def _read_parquet(path: Path, kind: str) -> tuple[list[str], np.ndarray]:
    import pyarrow.parquet as pq

    table = pq.read_table(path).combine_chunks()
    column = table.column(f"{kind}_embedding" if kind else "embedding")
    width = column.type.list_size
    flat = column.combine_chunks().flatten() if column.num_chunks != 1 else column.chunk(0).flatten()
    return table.column("key").to_pylist(), flat.to_numpy(zero_copy_only=False).reshape(-1, width)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise ClipModelsError(f"{path} is damaged: not JSON; remove the folder and run again") from error
