"""A benchmark and a section of the report as a user's package defines them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from clip_eval import BenchmarkConfig


@dataclass(frozen=True, kw_only=True)
class SpreadConfig(BenchmarkConfig):
    """Measures how many images have a direction of their own."""

    threshold: float = 0.99

    def measure(self, images: Any, embedder: Any, data: Any) -> Any:
        from clip_eval.benchmarks import Outcome
        from clip_eval.metrics import proportion

        similarity = images.features @ images.features.T
        apart = (similarity > self.threshold).sum(axis=1) == 1
        return Outcome(metrics=[proportion("apart", apart, 0.0)], counts={"images": len(apart)})


def licenses(inputs: Any) -> Any:
    """A section with a fact about the dataset; a string that is no markup is escaped."""
    from clip_eval.report.html import note
    from clip_eval.report.inputs import Section

    if inputs.dataset is None:
        return None
    parts = [note("Licenses of {} units: {}", len(inputs.dataset.units), "<script>")]
    return Section(name="licenses", title="Licenses of the images", parts=parts)
