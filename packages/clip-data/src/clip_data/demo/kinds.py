"""What real URL lists hold, as a closed list: the kinds of rows of the demo table and their shares."""

from dataclasses import dataclass
from typing import Literal

from clip_data.demo.data import load
from clip_data.errors import ClipDataError

ROWS = 4000


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One way a row of a URL list can be."""

    outcome: Literal["image", "tiny", "opted_out", "rejected"]
    """What a careful fetcher makes of the row: a usable image; one that is too small; one whose server says no to
    training; nothing."""
    per_4000: int
    """Rows of this kind in a table of 4,000."""
    slow: bool = False
    """True where only the fetcher's own deadline ends the fetch."""


_UNUSUAL = {name: Kind(**kind) for name, kind in load("kinds.toml").items()}
KINDS = {"ok": Kind(outcome="image", per_4000=ROWS - sum(kind.per_4000 for kind in _UNUSUAL.values())), **_UNUSUAL}
MIN_ROWS = 4 * len(KINDS)


def kind_counts(rows: int) -> dict[str, int]:
    """Returns how many of `rows` rows are of each kind: the fixed shares, but at least one of every kind.

    Raises ClipDataError when `rows` is too small for that.
    """
    if rows < MIN_ROWS:
        raise ClipDataError(f"rows = {rows} is too few for {len(KINDS)} kinds of rows: ask for at least {MIN_ROWS}")
    counts = {name: max(1, kind.per_4000 * rows // ROWS) for name, kind in _UNUSUAL.items()}
    return {"ok": rows - sum(counts.values()), **counts}
