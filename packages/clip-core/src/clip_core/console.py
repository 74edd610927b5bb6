"""Progress bars and warnings of the commands, on standard error."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm


def progress_bar(items: Iterable[Any] | None = None, *, show: bool | None = None, **options: Any) -> tqdm[Any]:
    """Returns a tqdm bar; `options` are tqdm's (total, initial, desc, unit …).

    `show`: None shows the bar on a terminal only, True also in a log file, where it takes a line every 30 seconds.
    """
    from tqdm import tqdm

    seconds = 0.2 if sys.stderr.isatty() else 30
    return tqdm(iterable=items, disable=None if show is None else not show, mininterval=seconds, **options)


def warn(message: str) -> None:
    """Prints a warning."""
    print(f"warning: {message}", file=sys.stderr)
