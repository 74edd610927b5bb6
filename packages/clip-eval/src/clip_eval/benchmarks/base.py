"""The outcome of a benchmark."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from clip_eval.intervals import wilson


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


def proportion(name: str, hits: np.ndarray, chance: float) -> Metric:
    """Returns the share of true values in bool [N], with Wilson's interval."""
    low, high = wilson(int(hits.sum()), len(hits))
    return Metric(
        metric=name, value=float(hits.mean()), low=low, high=high, n=len(hits), chance=chance, interval="wilson"
    )


def lowest(names: list[str], count: int) -> list[int]:
    """Returns the indices of the `count` first names in sorted order: the same arbitrary sample in every run."""
    return sorted(range(len(names)), key=names.__getitem__)[:count]
