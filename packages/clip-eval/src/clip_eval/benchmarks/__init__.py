"""Benchmarks: what a model is measured with. Each kind is a config in a file of this folder; `kind` chooses one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from clip_core.config import Variant, to_dict
from clip_core.registry import Registry
from clip_eval.errors import ClipEvalError

if TYPE_CHECKING:
    from clip_data.stream import Manifest
    from clip_eval.features import Embedder, ImageFeatures

BENCHMARKS: Registry[type[BenchmarkConfig]] = Registry(
    "benchmark",
    {
        "zeroshot": "clip_eval.benchmarks.zeroshot:ZeroShotConfig",
        "retrieval": "clip_eval.benchmarks.retrieval:RetrievalConfig",
    },
)


def check_names(benchmarks: Sequence[BenchmarkConfig]) -> None:
    """Raises ClipEvalError if two benchmarks have the same name."""
    for name, n in Counter(benchmark.name for benchmark in benchmarks).items():
        if n > 1:
            raise ClipEvalError(f"two benchmarks are named {name!r}: choose different names")


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One number of a benchmark, with what is needed to judge it."""

    metric: str
    """Name."""
    value: float
    """Between 0 and 1."""
    low: float
    """Lower end of the 95 % interval."""
    high: float
    """Upper end of the 95 % interval."""
    n: int
    """Samples, or queries."""
    chance: float
    """Expected value of a random ranking."""
    interval: str
    """wilson or bootstrap."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a benchmark found."""

    metrics: list[Metric]
    """In the order of the table."""
    counts: dict[str, int]
    """What was left out, cut or is missing."""
    details: dict[str, Any] = field(default_factory=dict)
    """JSON for the report."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig(Variant):
    """Base of the configs of all benchmarks. Their modules import numpy and torch only inside methods."""

    KINDS = BENCHMARKS
    DEFAULT = "zeroshot"

    name: str
    """Name of the benchmark in the results; unique."""
    dataset: str
    """Folder (or fsspec URL) of the dataset."""
    selection: str = ""
    """Name of a selection of the dataset; "" takes every successful sample."""
    max_corrupt: float = 0.05
    """Largest share of samples that cannot be read; above it the evaluation stops."""
    overlap: Literal["error", "allow"] = "error"
    """Samples that the model was trained on (the same uid) are an error, or allowed."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the towers; scores are exact either way."""
    batch_size: int = 256
    """Images or texts per forward pass."""

    def __post_init__(self) -> None:
        if not self.name or "/" in self.name:
            raise ClipEvalError(f"the benchmark name {self.name!r} must be a word without '/': it names a file")
        if not self.dataset:
            raise ClipEvalError(f"benchmark {self.name!r} has no dataset: set its dataset")
        if self.batch_size < 1:
            raise ClipEvalError(f"benchmark {self.name!r}: batch_size {self.batch_size} must be at least 1")
        if not 0 <= self.max_corrupt <= 1:
            raise ClipEvalError(f"benchmark {self.name!r}: max_corrupt {self.max_corrupt} must be between 0 and 1")

    def read(self, manifest: Manifest) -> Any:
        """Reads and checks what the benchmark needs beside images and captions, before the model is loaded.

        The result is passed to `protocol` and `measure`.
        """

    def protocol(self, data: Any) -> dict[str, Any]:
        """Returns the JSON values that decide the numbers, apart from the samples, the model and the code."""
        unrelated = {"name", "dataset", "selection", "max_corrupt", "overlap", "batch_size"}
        return {name: value for name, value in to_dict(self).items() if name not in unrelated}

    def measure(self, images: ImageFeatures, embedder: Embedder, data: Any) -> Outcome:
        """Returns the metrics. Raises ClipEvalError if no sample can be measured."""
        raise NotImplementedError
