"""Benchmarks of clip-eval, measured with the weights of a run while it goes on."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

from clip_data.stream import Manifest, OnceReader, Source, build_manifest, read_once
from clip_eval.benchmarks import BenchmarkConfig
from clip_eval.features import STRINGS, Embedder, check_corrupt, reading, strings_of
from clip_eval.leakage import refuse_training_samples, training_sources
from clip_models import CLIP
from clip_train.config import FitConfig
from clip_train.heldout import Weights
from clip_train.hooks.base import RunHook
from clip_train.loop import Loop, Step
from clip_train.parallel import World
from clip_train.tasks.base import Task

T = TypeVar("T")


class Prepared(NamedTuple):
    """A benchmark, with what it reads before it is measured."""

    config: BenchmarkConfig
    manifest: Manifest
    data: Any


def prepare(config: FitConfig, world: World) -> list[Prepared]:
    """Reads the benchmarks of a run, on every rank. Raises ClipError for what is missing, and for training samples."""
    benchmarks = config.val.benchmarks
    before = [source for name, _ in config.model.weights().values() for source in training_sources(name)]
    world.lead(lambda: refuse_training_samples(benchmarks, [*config.data.sources, *before]))
    prepared = []
    for one in benchmarks:
        manifest = build_manifest([Source(dataset=one.dataset, selection=one.selection)])
        prepared.append(Prepared(one, manifest, one.read(manifest)))
    return prepared


@dataclass(kw_only=True)
class RankEmbedder(Embedder):
    """Features of the model that is trained. Each rank embeds its share, and all ranks get all features.

    All ranks call it alike. They compute equally often, which sharded models need: a rank that has nothing left embeds
    a blank. `precision` has no effect: the model is computed as in training.
    """

    task: Task
    world: World
    workers: int = 0
    timeout: float = 600.0
    """seconds without a batch after which a worker process is replaced"""
    wait_s: float = math.inf
    """largest number of seconds that one wait for a batch may take"""
    _readers: dict[tuple[str, int], OnceReader] = field(default_factory=dict)
    _known: dict[tuple[Any, ...], dict[str, np.ndarray]] = field(default_factory=dict)

    @property
    def model(self) -> CLIP:
        return self.task.model

    def forget(self) -> None:
        """Drops the features: the weights have changed."""
        self._known.clear()

    def close(self) -> None:
        """Ends the worker processes."""
        for reader in self._readers.values():
            reader.close()

    def _kept(self, embed: Callable[[], dict[str, np.ndarray]], **key: Any) -> dict[str, np.ndarray]:
        name = tuple(sorted(key.items()))
        if name not in self._known:
            self._known[name] = embed()
        return self._known[name]

    def _embed_images(
        self, manifest: Manifest, precision: str, batch_size: int, max_corrupt: float
    ) -> tuple[np.ndarray, dict[str, list[str]], int]:
        reader, size = self._reader(manifest, batch_size), min(batch_size, manifest.samples)
        blank = np.zeros((1, 3, *self.model.spec.preprocess.size), np.uint8)
        batches = self.world.watch.batches(reader.numbered(), self.wait_s)
        mine: dict[int, tuple[np.ndarray, dict[str, list[str]]]] = {}
        for _ in range(0, -(-manifest.samples // size), self.world.size):
            number, batch = next(batches, (-1, {"uid": []}))
            images = np.asarray(batch["image"]) if batch["uid"] else blank
            features = self._encode(images, precision)
            if batch["uid"]:
                mine[number] = features, strings_of(batch)
        assert next(batches, None) is None
        corrupt = sum(self.world.gather(int(reader.stats["corrupt"])))
        check_corrupt(corrupt, manifest, max_corrupt)
        parts = self._joined(mine)
        strings = {key: [value for _, each in parts for value in each[key]] for key in STRINGS}
        return np.concatenate([each for each, _ in parts]) if parts else np.empty((0, 0)), strings, corrupt

    def _embed_tokens(self, rows: np.ndarray, precision: str, batch_size: int) -> np.ndarray:
        parts = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
        mine = {}
        for start in range(0, len(parts), self.world.size):
            number = start + self.world.rank
            features = self._encode(parts[number] if number < len(parts) else rows[:1], precision)
            if number < len(parts):
                mine[number] = features
        return np.concatenate(self._joined(mine))

    def _encode(self, batch: np.ndarray, precision: str) -> np.ndarray:
        return self.task.embed(torch.from_numpy(batch).to(self.world.device)).cpu().numpy()

    def _joined(self, mine: Mapping[int, T]) -> list[T]:
        """Returns the parts of all ranks in the order of their numbers."""
        found = {number: part for each in self.world.gather(mine) for number, part in each.items()}
        return [found[number] for number in sorted(found)]

    def _reader(self, manifest: Manifest, batch_size: int) -> OnceReader:
        key = manifest.fingerprint, batch_size
        if key not in self._readers:
            self._readers[key] = read_once(
                manifest,
                batch_size=batch_size,
                workers=self.workers,
                rank=self.world.rank,
                world_size=self.world.size,
                keep_workers=True,
                timeout=self.timeout,
                **reading(self.model.spec),
            )
        return self._readers[key]


@dataclass(kw_only=True)
class Benchmarks(RunHook):
    """Measures benchmarks of clip-eval, such as zero-shot classification. Their numbers do not depend on the ranks."""

    prepared: list[Prepared]
    embedder: RankEmbedder
    precision: str
    weights: Weights = field(default_factory=lambda: {"val_loss": nullcontext})
    """as those of Validation"""

    def on_step(self, loop: Loop, step: Step) -> None:
        if not self.due(loop, step):
            return
        for kind, weights in self.weights.items():
            with weights():
                for one in self.prepared:
                    self._measure(one, step.step, kind.removeprefix("val_loss_").removeprefix("val_loss"))
            self.embedder.forget()

    def _measure(self, one: Prepared, step: int, average: str) -> None:
        config = one.config
        images = self.embedder.images(
            one.manifest, precision=config.precision, batch_size=config.batch_size, max_corrupt=config.max_corrupt
        )
        outcome = config.measure(images, self.embedder, one.data)
        if self.log:
            values = {metric.metric: metric.value for metric in outcome.metrics}
            about = {"benchmark": config.name, "weights": average or "model", "precision": self.precision}
            counts = {**outcome.counts, "samples": len(images.features), "corrupt": images.corrupt}
            self.log.write({"step": step, "event": "benchmark", **about, **values, **counts})
            suffix = f"_{average}" if average else ""
            self.log.scalars({f"{config.name}/{name}{suffix}": value for name, value in values.items()}, step)

    def on_end(self, loop: Loop) -> None:
        self.embedder.close()
