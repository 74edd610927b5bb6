"""The config of a selection."""

import re
from dataclasses import dataclass
from typing import Literal

from clip_data.errors import ClipDataError

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


@dataclass(frozen=True, kw_only=True)
class SelectConfig:
    """A named selection. Rows are left out in the order parent, rejected, taken down, where, dedup."""

    name: str
    """name of the selection: letters, digits, '_', '-' and '.'"""
    where: str = ""
    """expression over columns, e.g. 'width >= 64 and words >= 3 and not has_url'; empty keeps every row"""
    dedup: tuple[Literal["sha256", "phash"], ...] = ()
    """hashes of which only the first equal row is kept, one after the other; phash requires the image scorer"""
    parent: str = ""
    """another selection, from whose rows this one chooses; empty chooses from all rows"""

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise ClipDataError(f"name = {self.name!r} must be letters, digits, '_', '-' or '.'")
        if len(set(self.dedup)) != len(self.dedup):
            raise ClipDataError(f"dedup = {list(self.dedup)!r} names a hash twice")
        if self.parent == self.name:
            raise ClipDataError(f"parent = {self.parent!r} is the selection itself")
