"""One pass over held-out samples: features of all of them, and the losses of batches of the training size.

Batches are fixed ranges of the samples, without corrupt ones. The ranks take turns in reading and computing chunks of
them and exchange the features; the loss of a batch is computed by one rank, of all its features, as in training. So the
numbers depend neither on the number of ranks nor on who computes what. Every rank computes equally often, which sharded
models need. Memory is that of one chunk, of the features of the batches under way, and with retrieval of the features
of all samples, on the CPU of every rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clip_train.parallel import World, all_gather
from clip_train.retrieval import Identities, joined, retrieval
from clip_train.tasks.base import Task, sum_of

CHUNK = 128  # samples of one forward pass
LEAST = 16  # a batch that has no divisor from here to CHUNK is computed whole
COLUMNS = ("sha256", "caption")  # of the dataset, for retrieval
Rows = dict[tuple[str, str], Tensor]
"""tensors [n, …] by (kind, name); kinds are "batch", a kind of weights, or "own " and a kind of weights"""
Weights = Mapping[str, Callable[[], AbstractContextManager[Any]]]


def chunk_of(batch_size: int, most: int = CHUNK) -> int:
    """Returns how many samples of a batch are computed at a time: a divisor that does not depend on the ranks."""
    size = next(size for size in range(min(batch_size, most, CHUNK), 0, -1) if batch_size % size == 0)
    return size if size >= min(LEAST, most) else batch_size


@dataclass(kw_only=True)
class HeldOut:
    """The pass. Its chunks are added on all ranks together."""

    task: Task
    world: World
    weights: Weights
    samples: int
    """corrupt ones included"""
    batch_size: int
    chunk: int
    """samples of a chunk, a divisor of the batch size"""
    retrieval: bool
    """whether to keep the features of images and captions"""
    losses: dict[int, tuple[int, dict[str, float]]] = field(default_factory=dict)
    """by number of the batch, for those of this rank: good samples, and the loss under each kind of weights"""
    _pending: dict[int, list[Rows]] = field(default_factory=dict)
    _kept: dict[tuple[str, str], list[Tensor]] = field(default_factory=dict)
    _ids: dict[int, Identities] = field(default_factory=dict)
    _shared: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    _spare: Mapping[str, Any] | None = None

    def run(self, chunks: Iterator[tuple[int, Mapping[str, Any]]]) -> None:
        """Takes this rank's chunks, with their numbers: every `world.size`-th one."""
        for start in range(0, -(-self.samples // self.chunk), self.world.size):
            number, batch = next(chunks, (start + self.world.rank, {"uid": []}))
            self._add(number, batch)
        assert next(chunks, None) is None

    @torch.no_grad()
    def _add(self, number: int, batch: Mapping[str, Any]) -> None:
        good = len(batch["uid"])
        if self.retrieval:
            self._ids[number] = _identities(batch)
        if self._spare is None:  # what a rank computes that has no good sample at the moment
            one = {name: value[:1] for name, value in batch.items()} if good else None
            self._spare = next(filter(None, self.world.gather(one)), None)
        if self._spare is None:
            return
        rows = self._computed(batch if good else self._spare)
        rows["rows", ""] = torch.tensor([good], device=self.world.device)
        for rank, theirs in enumerate(self._exchanged(rows)):
            self._arrived(number - self.world.rank + rank, theirs)

    def _computed(self, batch: Mapping[str, Any]) -> Rows:
        """Returns the features of a chunk, what losses need beside them, and the sums of the samples' own losses."""
        prepared = self.task.prepare(batch)
        beside = {name: value for name, value in prepared.items() if value.ndim == 1} | self.task.targets(prepared)
        rows = {("batch", name): value for name, value in beside.items()}
        counts = self.task.weighed(prepared)
        for kind, weights in self.weights.items():
            with weights():
                out = self.task.held_out(prepared)
                self._shared[kind] = {name: value.clone() for name, value in out.shared.items()}
            rows |= {(kind, name): value for name, value in out.features.items()}
            for name, loss in out.losses.items():
                count = torch.as_tensor(counts.get(name, len(batch["uid"])), device=loss.device).double()
                rows[f"own {kind}", name] = torch.stack([loss.double() * count, count])[None]
        return rows

    def _exchanged(self, mine: Rows) -> list[Rows]:
        """Returns what each rank has, in rank order. Tensors of samples are filled up to the size of a chunk."""
        found: list[Rows] = [{} for _ in range(self.world.size)]
        with self.world.collective():
            for key, value in sorted(mine.items()):
                whole = value
                if key[0] != "rows" and not key[0].startswith("own "):
                    whole = value.new_zeros((self.chunk, *value.shape[1:]))
                    whole[: len(value)] = value
                parts = [whole] if self.world.size == 1 else all_gather(whole).chunk(self.world.size)
                for rows, part in zip(found, parts, strict=True):
                    rows[key] = part
        return found

    def _arrived(self, number: int, rows: Rows) -> None:
        good = int(rows.pop(("rows", "")))
        if number * self.chunk >= self.samples:
            return
        # The own losses of a chunk without a good sample are those of the spare one.
        rows = {key: value[:good] for key, value in rows.items()}
        if self.retrieval:
            for kind in self.weights:
                for name in ("image", "text"):
                    if (kind, name) in rows:
                        self._kept.setdefault((kind, name), []).append(rows[kind, name].cpu())
        batch = number * self.chunk // self.batch_size
        if (batch + 1) * self.batch_size > self.samples:
            return  # the rest, which is no whole batch
        self._pending.setdefault(batch, []).append(rows)
        if len(self._pending[batch]) * self.chunk == self.batch_size:
            chunks = self._pending.pop(batch)
            if batch % self.world.size == self.world.rank:
                self._complete(batch, chunks)

    def _complete(self, batch: int, chunks: list[Rows]) -> None:
        """Computes the losses of a batch."""
        kinds: dict[str, dict[str, Tensor]] = {}
        for kind, name in chunks[0]:
            whole = torch.cat([rows[kind, name] for rows in chunks])
            kinds.setdefault(kind, {})[name] = whole
        good = len(next(iter(kinds[next(iter(self.weights))].values())))
        if good < 2:
            return
        losses = {}
        for kind in self.weights:
            parts = self.task.losses_of(kinds[kind], self._shared[kind], kinds["batch"], ranks=1)
            for name, sums in kinds.get(f"own {kind}", {}).items():
                total, count = sums.sum(0)
                parts[name] = (total / count.clamp(min=1)).float()
            losses[kind] = float(sum_of(parts))
        self.losses[batch] = good, losses

    def means(self, chance: Callable[[int], float | None]) -> tuple[dict[str, float], int]:
        """Returns the mean loss under each kind of weights, "chance" if it is known, and the samples of the batches."""
        batches = {number: found for part in self.world.gather(self.losses) for number, found in part.items()}
        if not batches:
            return {}, 0
        # Added in the order of the batches: the sum is the same on every number of ranks.
        rows = [batches[number] for number in sorted(batches)]
        means = {kind: math.fsum(losses[kind] for _, losses in rows) / len(rows) for kind in self.weights}
        levels = [chance(good) for good, _ in rows]
        if None not in levels:
            means["chance"] = math.fsum(level for level in levels if level is not None) / len(rows)
        return means, sum(good for good, _ in rows)

    def ranks(self) -> dict[str, float]:
        """Returns the measures of retrieval under each kind of weights; none if the task has no such features."""
        gathered = {number: ids for part in self.world.gather(self._ids) for number, ids in part.items()}
        ids = joined([gathered[number] for number in sorted(gathered)])
        found: dict[str, float] = {}
        for kind in self.weights:
            if (kind, "image") in self._kept and (kind, "text") in self._kept:
                image, text = (torch.cat(self._kept[kind, name]) for name in ("image", "text"))
                suffix = kind.removeprefix("val_loss")
                values = retrieval(image, text, ids, self.world)
                found |= {f"{name}{suffix}": value for name, value in values.items()}
        return found


def _identities(batch: Mapping[str, Any]) -> Identities:
    """Returns what tells the samples of a chunk apart."""

    def hashes(values: Any) -> np.ndarray:
        return np.array([blake2b(value, digest_size=16).digest() if value else b"" for value in values], "S16")

    uids = batch["uid"]
    captions = [
        caption.encode("utf-8", "surrogatepass") if caption and caption.strip() else b""
        for caption in batch.get("caption", uids)
    ]
    tokens = [row.tobytes() for row in batch.get("text", ())]
    images = [sha256 or uid.encode() for sha256, uid in zip(batch.get("sha256", uids), uids, strict=True)]
    return Identities(hashes(images), hashes(captions), hashes(tokens))
