"""A benchmark as a user's package defines it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from clip_eval import BenchmarkConfig


@dataclass(frozen=True, kw_only=True)
class SpreadConfig(BenchmarkConfig):
    """Measures how many images have a direction of their own."""

    threshold: float = 0.99

    def measure(self, images: Any, embedder: Any, data: Any) -> Any:
        from clip_eval.benchmarks.base import Outcome, proportion

        similarity = images.features @ images.features.T
        apart = (similarity > self.threshold).sum(axis=1) == 1
        return Outcome(metrics=[proportion("apart", apart, 0.0)], counts={"images": len(apart)})
