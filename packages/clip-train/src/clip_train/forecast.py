"""How many captions a run will cut, from a sample of them, before its first step.

The sample is a function of the data alone. Each source gets a part of it in proportion to its weight; from some of its
units, up to `UNITS` in all, captions are drawn in proportion to the units' sizes. The more the units differ, the less
the sample is worth: the interval is Wilson's for its effective size (Korn and Graubard 1998; Dean and Pagano 2015),
which has no limit where every caption is looked at.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from clip_data.stream import Manifest
from clip_data.stream.manifest import Part
from clip_data.stream.order import permutation
from clip_data.tables import read_table
from clip_train.captions import Captions
from clip_train.config import FitConfig
from clip_train.errors import ClipTrainError
from clip_train.parallel import World
from clip_train.synthetic import SyntheticConfig

CAPTIONS = 8192  # captions that are looked at
UNITS = 64  # units whose captions are read
EXAMPLES = 3
SHOWN = 80  # characters of a caption in a message
Z = 1.959963984540054  # the normal distribution's 97.5 % point


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What a sample of the captions says about all."""

    looked_at: int
    truncated: int
    """captions of the sample that are too long"""
    share: float
    """share of too long captions among those that the run sees"""
    low: float
    high: float
    """95 % interval of the share"""
    predicted: int
    """captions that the run cuts until its end"""
    predicted_low: int
    predicted_high: int
    """95 % interval of that number"""
    examples: tuple[str, ...]

    def record(self) -> dict[str, Any]:
        """Returns the numbers, for the log."""
        return {name: value for name, value in asdict(self).items() if name != "examples"}


@dataclass(frozen=True)
class _Drawn:
    """What was found in one unit."""

    source: int
    samples: int
    looked_at: int
    truncated: int
    examples: list[str]


def foresee(
    config: FitConfig,
    tokenizer: Captions | None,
    manifest: Manifest | SyntheticConfig,
    held_out: Manifest | None,
    steps: int,
    world: World,
) -> list[dict[str, Any]]:
    """Returns events for the log with what is predicted of a run. Raises ClipTrainError if long captions are an error.

    Synthetic captions fit. Without a tokenizer the captions are not used.
    """
    if isinstance(manifest, SyntheticConfig) or tokenizer is None:
        return []
    seen = {"data.sources": (manifest, steps * config.train.batch_size)}
    if held_out:
        seen["val.sources"] = (held_out, held_out.samples)
    events = []
    for name, (samples, count) in seen.items():
        found = forecast(samples, tokenizer, count, world)
        if config.data.long_captions == "error":
            refuse_long_captions(found, name)
        events.append({"event": "captions", "of": name, **found.record()})
    return events


def forecast(manifest: Manifest, tokenizer: Captions, seen: int, world: World) -> Forecast:
    """Predicts how many of the `seen` captions of a run are too long. The ranks share the units."""
    units = list(_chosen(manifest))
    mine = [_look(manifest, tokenizer, *unit) for unit in units[world.rank :: world.size]]
    gathered = world.gather(mine)
    drawn = [gathered[index % world.size][index // world.size] for index in range(len(units))]
    weights = [part.source.weight / sum(part.source.weight for part in manifest.parts) for part in manifest.parts]
    share, inverse, noise = 0.0, 0.0, 0.0  # inverse of the effective size; variance of the number in partial epochs
    for source, (part, weight) in enumerate(zip(manifest.parts, weights, strict=True)):
        own = [unit for unit in drawn if unit.source == source]
        part_share, part_inverse = _estimate(own, part)
        share, inverse = share + weight * part_share, inverse + weight**2 * part_inverse
        rest = seen * weight % part.samples
        noise += rest * (1 - rest / part.samples) * part_share * (1 - part_share)
    low, high = wilson(share, inverse)
    down, up = (math.hypot(seen * distance, Z * math.sqrt(noise)) for distance in (share - low, high - share))
    return Forecast(
        looked_at=sum(unit.looked_at for unit in drawn),
        truncated=sum(unit.truncated for unit in drawn),
        share=share,
        low=low,
        high=high,
        predicted=round(seen * share),
        predicted_low=max(0, math.floor(seen * share - down)),
        predicted_high=min(seen, math.ceil(seen * share + up)),
        examples=tuple([example for unit in drawn for example in unit.examples][:EXAMPLES]),
    )


def refuse_long_captions(found: Forecast, sources: str) -> None:
    """Raises ClipTrainError if a caption of the sample is too long."""
    if not found.truncated:
        return
    raise ClipTrainError(
        f"{found.truncated:,} of {found.looked_at:,} captions of {sources} that were looked at have more tokens than "
        f"the model's context, so about {found.predicted:,} ({found.predicted_low:,} to {found.predicted_high:,}) "
        f"would be cut: {'; '.join(found.examples)}; select shorter ones (--where 'words < 20'), or set "
        "data.long_captions = 'truncate'"
    )


def wilson(share: float, inverse: float) -> tuple[float, float]:
    """Returns Wilson's 95 % interval of a share that was estimated from 1 / `inverse` draws."""
    z = Z * Z * inverse
    centre = (share + z / 2) / (1 + z)
    half = math.sqrt(z * share * (1 - share) + z * z / 4) / (1 + z)
    return min(share, max(0.0, centre - half)), max(share, min(1.0, centre + half))


def _chosen(manifest: Manifest) -> Iterator[tuple[int, int, int]]:
    """Yields (source, index of the unit, captions to draw from it)."""
    total = sum(part.source.weight for part in manifest.parts)
    few = sum(len(part.units) for part in manifest.parts) <= UNITS
    for source, part in enumerate(manifest.parts):
        weight = part.source.weight / total
        order = permutation(len(part.units), "captions", manifest.fingerprint, source)
        chosen = np.sort(order if few else order[: max(1, math.floor(UNITS * weight))])
        held = int(part.counts[chosen].sum())
        drawn = 1.0 if manifest.samples <= CAPTIONS else min(1.0, math.ceil(CAPTIONS * weight) / held)
        for unit in chosen.tolist():
            yield source, unit, math.ceil(int(part.counts[unit]) * drawn)


def _look(manifest: Manifest, tokenizer: Captions, source: int, unit: int, count: int) -> _Drawn:
    part = manifest.parts[source]
    plan = part.units[unit]
    rows = part.rows(plan)
    drawn = np.sort(permutation(len(rows), "captions", manifest.fingerprint, source, plan.name)[:count])
    table = read_table(part.selection.store, plan.sidecar_name, ["caption", "uid"], plan.rows).take(rows[drawn])
    captions = [caption or "" for caption in table["caption"].to_pylist()]
    tokens = tokenizer(captions)
    long = tokenizer.truncated(captions, tokens)
    examples = [
        _example(captions[row], table["uid"][row].as_py(), tokenizer.too_long(captions[row], tokens[row]))
        for row in long[:EXAMPLES]
    ]
    return _Drawn(source, len(rows), len(captions), len(long), examples)


def _example(caption: str, uid: bytes, size: tuple[int, int] | None) -> str:
    needed, context = size or (0, 0)
    shown = caption if len(caption) <= SHOWN else caption[: SHOWN - 1] + "…"
    return f"{shown!r} has {needed} tokens for a context of {context} (uid {uid.hex()})"


def _estimate(units: Sequence[_Drawn], part: Part) -> tuple[float, float]:
    """Returns (share of too long captions, inverse of the effective size of the sample) of one source."""
    samples = sum(unit.samples for unit in units)
    looked_at = sum(unit.looked_at for unit in units)
    shares = [unit.truncated / unit.looked_at for unit in units]
    share = sum(unit.samples / samples * own for unit, own in zip(units, shares, strict=True))
    single = share * (1 - share) / looked_at  # the variance if captions were drawn one by one
    design = 1.0
    if 1 < len(units) < len(part.units) and single:
        deviations = (unit.samples / samples * (own - share) for unit, own in zip(units, shares, strict=True))
        variance = sum(deviation**2 for deviation in deviations) * len(units) / (len(units) - 1)
        design = max(1.0, variance / single)
    return share, design / looked_at * (1 - looked_at / part.samples)
