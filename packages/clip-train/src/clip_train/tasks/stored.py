"""Embeddings of a teacher on disk, joined with the samples of a run."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa

from clip_core.store import Store
from clip_data.dataset import Unit, parse_key
from clip_data.stream.manifest import Manifest, Part
from clip_data.tables import read_table
from clip_models.inference.embedding.parts import MANIFEST
from clip_train.errors import ClipTrainError

KEY = "task.teacher_embeddings"
ROWS = 100_000  # of one key: its unit's ordinal times this, and its row
SHOWN = 3
THREADS = 8


class StoredEmbeddings:
    """A finished folder of `clip-models embed --what both --format npy`, keyed by uid or by the keys of a dataset.

    The embeddings are mapped into memory, not read: the system loads the pages of the samples of a batch and drops
    them when memory is short. Memory of the process: 24 bytes for each sample of the run.
    """

    def __init__(self, folder: str) -> None:
        """Raises ClipTrainError for a folder of another kind."""
        root, store = Path(folder), Store(folder)
        if not store.exists(MANIFEST):
            raise ClipTrainError(f"{KEY} = {folder!r} holds no embeddings: it has no {MANIFEST}")
        found = store.read_json(MANIFEST)
        config = found["config"]
        if not found.get("complete") or "logit_scale" not in found:
            raise ClipTrainError(f"{KEY} = {folder!r} is not finished: run its embed command again")
        for name, wanted, why in (
            ("what", "both", "images and captions"),
            ("format", "npy", "files that can be mapped"),
        ):
            if config[name] != wanted:
                raise ClipTrainError(
                    f"{KEY} = {folder!r} was made with --{name} {config[name]}; the task needs {why}: "
                    f"embed with --{name} {wanted}"
                )
        self.folder, self.width = folder, int(config["embed_dim"])
        self.logit_scale = float(found["logit_scale"])
        """exponentiated"""
        numbers = range(found["parts"])
        self._parts = [
            tuple(np.load(root / f"{side}-{number:06}.npy", mmap_mode="r") for side in ("image", "text"))
            for number in numbers
        ]
        self._ends = np.cumsum([len(image) for image, _ in self._parts])
        self._by_uid = True
        self._keys = self._parsed([key for number in numbers for key in store.read_json(f"keys-{number:06}.json")])
        self._uids, self._rows = np.empty(0, "S16"), np.empty(0, np.int64)

    def _parsed(self, keys: Sequence[str]) -> np.ndarray:
        """Returns uids as S16, or the keys of a dataset as int64."""
        places = [parse_key(key) for key in keys]
        if keys and all(places):
            self._by_uid = False
            return np.array([unit * ROWS + row for unit, row in filter(None, places)], np.int64)
        try:
            if any(len(key) != 32 for key in keys):
                raise ValueError
            return np.frombuffer(bytes.fromhex("".join(keys)), "S16")
        except ValueError:
            wrong = next(key for key in keys if len(key) != 32 or set(key.lower()) - set("0123456789abcdef"))
            raise ClipTrainError(
                f"{KEY} = {self.folder!r} has the key {wrong!r}, which is neither a uid (32 hex digits) nor a key of a "
                "dataset (13 digits): embed the dataset's shards, or a table with --key-column uid"
            ) from None

    def join(self, manifests: Sequence[Manifest]) -> None:
        """Finds the embeddings of all samples of the manifests. Raises ClipTrainError, with the count, if some lack."""
        parts = [part for manifest in manifests for part in manifest.parts]
        datasets = {part.source.dataset for part in parts}
        if not self._by_uid and len(datasets) > 1:
            raise ClipTrainError(
                f"{KEY} = {self.folder!r} is keyed by the samples of one dataset, but the run has {len(datasets)} "
                "(data.sources, val.sources): key the embeddings by uid"
            )
        order = np.argsort(self._keys, kind="stable")
        ordered = self._keys[order]

        def find(pair: tuple[Part, Unit]) -> tuple[np.ndarray, np.ndarray]:
            part, unit = pair
            rows = part.rows(unit)
            uids = _uids(part, unit, rows)
            wanted = uids if self._by_uid else unit.ordinal * ROWS + rows.astype(np.int64)
            at = np.searchsorted(ordered, wanted).clip(max=max(len(ordered) - 1, 0))
            there = ordered[at] == wanted if len(ordered) else np.zeros(len(wanted), bool)
            return uids, np.where(there, order[at] if len(ordered) else -1, -1)

        with ThreadPoolExecutor(THREADS) as threads:
            joined = list(threads.map(find, [(part, unit) for part in parts for unit in part.units]))
        uids, rows = (np.concatenate(each) for each in zip(*joined, strict=True))
        if missing := int((rows < 0).sum()):
            shown = ", ".join(uid.ljust(16, b"\0").hex() for uid in uids[rows < 0][:SHOWN].tolist())
            raise ClipTrainError(
                f"{missing:,} of the {len(rows):,} samples of the run have no embedding in {KEY} = {self.folder!r} "
                f"(uid {shown}{', …' if missing > SHOWN else ''}): embed them, or select the samples that have one"
            )
        by_uid = np.argsort(uids, kind="stable")
        self._uids, self._rows = uids[by_uid], rows[by_uid]

    def find(self, uids: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Returns the embeddings of images and captions, [B, width] each, of samples that `join` has found."""
        wanted = np.frombuffer(bytes.fromhex("".join(uids)), "S16")
        rows = self._rows[np.searchsorted(self._uids, wanted)]
        parts = np.searchsorted(self._ends, rows, side="right")
        image, text = (np.empty((len(uids), self.width), self._parts[0][0].dtype) for _ in range(2))
        for number in np.unique(parts):
            mine = np.flatnonzero(parts == number)
            places = rows[mine] - (self._ends[number] - len(self._parts[number][0]))
            image[mine], text[mine] = (array[places] for array in self._parts[number])
        return image, text


def _uids(part: Part, unit: Unit, rows: np.ndarray) -> np.ndarray:
    """Returns S16 [kept]. Items lose zeros at their end, all of them alike: equal items are equal uids."""
    table = read_table(part.selection.store, unit.sidecar_name, ["uid"])
    uids = table["uid"].take(pa.array(rows)).combine_chunks()
    return np.frombuffer(uids.buffers()[1], "S16", len(uids), 16 * uids.offset)
