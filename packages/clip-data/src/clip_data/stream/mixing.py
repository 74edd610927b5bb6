"""Weighted mixing of sources: a periodic pattern of slots in which every prefix is close to the weights."""

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from clip_data.errors import ClipDataError

MAX_PERIOD = 1 << 16  # slots; simple ratios are exact, others are rounded to this many parts


class Pattern:
    """Slot q belongs to source `sources[q % period]`; each source owns `shares[source]` slots of a period."""

    def __init__(self, shares: Sequence[int]) -> None:
        self.shares = list(shares)
        self.period = sum(shares)
        # The j-th of n slots of a source is wanted at (j + 1/2) / n; in this order every prefix is close to the shares.
        wanted = np.concatenate([(np.arange(share) + 0.5) / share for share in shares])
        owners = np.repeat(np.arange(len(shares)), shares)
        order = np.lexsort((owners, wanted))
        self.sources = owners[order].astype(np.int32)
        self.slots = [np.flatnonzero(self.sources == source) for source in range(len(shares))]

    def at(self, start: int, position: int) -> tuple[int, int]:
        """Returns (source, how many of its slots came before) for a position of the pattern entered at slot `start`."""
        if len(self.shares) == 1:
            return 0, position
        cycle, slot = divmod(start + position, self.period)
        source = int(self.sources[slot])
        rank, skipped = np.searchsorted(self.slots[source], (slot, start))
        return source, cycle * self.shares[source] + int(rank - skipped)


def pattern(weights: Sequence[float]) -> Pattern:
    """Returns the pattern for positive, finite weights. Raises ClipDataError for others."""
    for weight in weights:
        if not (math.isfinite(weight) and weight > 0):
            raise ClipDataError(f"a source's weight must be a positive number, not {weight!r}")
    total = sum(Fraction(str(weight)) for weight in weights)
    parts = [Fraction(str(weight)) / total for weight in weights]
    period = math.lcm(*(part.denominator for part in parts))
    if period <= MAX_PERIOD:
        return Pattern([int(part * period) for part in parts])
    return Pattern(_round(parts))


def _round(parts: Sequence[Fraction]) -> list[int]:
    """Rounds by the largest-remainder method, with at least one slot each."""
    wanted = [part * MAX_PERIOD for part in parts]
    shares = [max(1, math.floor(want)) for want in wanted]
    by_remainder = sorted(range(len(parts)), key=lambda index: (shares[index] - wanted[index], index))
    for index in by_remainder[: max(0, MAX_PERIOD - sum(shares))]:
        shares[index] += 1
    divisor = math.gcd(*shares)
    return [share // divisor for share in shares]
