"""What a user may have meant by a name that does not exist."""

from collections.abc import Callable, Iterable
from difflib import get_close_matches


def nearest(name: object, known: Iterable[str], most: int = 1, cutoff: float = 0.6) -> list[str]:
    """Returns at most `most` of the known names, the most similar first; similarities range from `cutoff` to 1."""
    return get_close_matches(str(name), [*known], most, cutoff)


def did_you_mean(
    name: object,
    known: Iterable[str],
    otherwise: str = "",
    *,
    most: int = 1,
    cutoff: float = 0.6,
    spell: Callable[[str], str] = str,
) -> str:
    """Returns the question "did you mean …?"; `otherwise` if no known name is similar. `spell` formats a name."""
    close = nearest(name, known, most, cutoff)
    return f"did you mean {' or '.join(map(spell, close))}?" if close else otherwise
