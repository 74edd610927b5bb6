"""Image-text retrieval: captions are ranked for each image, and images for each caption."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from clip_eval.benchmarks import BenchmarkConfig

if TYPE_CHECKING:
    from clip_eval.benchmarks.base import Outcome
    from clip_eval.features import Embedder, ImageFeatures


@dataclass(frozen=True, kw_only=True)
class RetrievalConfig(BenchmarkConfig):
    """Image-text retrieval in both directions."""

    def measure(self, images: ImageFeatures, embedder: Embedder, data: Any) -> Outcome:
        from clip_eval.benchmarks.ranking import rank_pairs

        return rank_pairs(self, images, embedder)
