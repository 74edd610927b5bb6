"""What real URL lists hold, as a closed list: the kinds of rows of the demo table and their shares."""

from dataclasses import dataclass
from typing import Literal

from clip_data.errors import ClipDataError

Outcome = Literal["picture", "tiny", "opted_out", "rejected"]
"""What a careful fetcher makes of a row: a usable picture; a picture too small to use; a picture whose server says no
to training; nothing."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One way a row of a URL list can be."""

    outcome: Outcome
    """What a careful fetcher makes of it."""
    per_4000: int
    """Rows of this kind in a table of 4,000."""
    slow: bool = False
    """True where only the fetcher's own deadline ends the fetch."""


def _picture(per_4000: int) -> Kind:
    return Kind(outcome="picture", per_4000=per_4000)


def _rejected(per_4000: int, slow: bool = False) -> Kind:
    return Kind(outcome="rejected", per_4000=per_4000, slow=slow)


ROWS = 4000

_UNUSUAL: dict[str, Kind] = {
    # Dead links.
    "not_found": _rejected(60),
    "gone": _rejected(12),
    "server_error": _rejected(12),
    "unavailable_once": _picture(12),
    "nothing_listening": _rejected(4),
    # Redirects.
    "redirect": _picture(12),
    "redirect_chain": _picture(4),
    "redirect_loop": _rejected(4),
    "redirect_scheme": _rejected(4),
    # Bodies that are no picture, or not a whole one.
    "html": _rejected(40),
    "empty_body": _rejected(8),
    "truncated": _rejected(16),
    "closed_early": _rejected(8),
    # Too small, too large.
    "tiny_1x1": Kind(outcome="tiny", per_4000=12),
    "tiny_8x8": Kind(outcome="tiny", per_4000=12),
    "pixel_bomb": _rejected(4),
    "oversized_chunked": _rejected(3),
    "oversized_declared": _rejected(3),
    # Slow.
    "drip": _picture(8),
    "stall_first_byte": _rejected(6, slow=True),
    "stall_body": _rejected(6, slow=True),
    "endless_trickle": _rejected(4, slow=True),
    # Seen before.
    "duplicate_row": _picture(12),
    "duplicate_bytes": _picture(12),
    "duplicate_pixels": _picture(12),
    # Opt-outs.
    "noai": Kind(outcome="opted_out", per_4000=12),
    "noimageai": Kind(outcome="opted_out", per_4000=8),
    "noai_other_bot": _picture(6),
    # Not for an HTTP client.
    "scheme_ftp": _rejected(4),
    "scheme_file": _rejected(4),
    "scheme_data": _rejected(4),
    "malformed_url": _rejected(4),
    "empty_url": _rejected(4),
    "null_url": _rejected(4),
    # Pictures that need care.
    "exif_rotated": _picture(12),
    "animated_gif": _picture(6),
    "animated_webp": _picture(6),
    "cmyk_jpeg": _picture(6),
    "rgba_png": _picture(12),
}

KINDS: dict[str, Kind] = {"ok": _picture(ROWS - sum(kind.per_4000 for kind in _UNUSUAL.values())), **_UNUSUAL}

MIN_ROWS = 4 * len(KINDS)


def kind_counts(rows: int) -> dict[str, int]:
    """How many of `rows` rows are of each kind: the fixed shares, but at least one of every kind.

    Raises ClipDataError when `rows` is too small for that.
    """
    if rows < MIN_ROWS:
        raise ClipDataError(f"rows = {rows} is too few for {len(KINDS)} kinds of rows: ask for at least {MIN_ROWS}")
    counts = {name: max(1, kind.per_4000 * rows // ROWS) for name, kind in KINDS.items() if name != "ok"}
    return {"ok": rows - sum(counts.values()), **counts}
