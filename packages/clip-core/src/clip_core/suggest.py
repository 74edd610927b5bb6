"""What a user may have meant by a name that does not exist."""

from collections.abc import Callable, Iterable
from difflib import get_close_matches


def did_you_mean(
    name: object,
    known: Iterable[str],
    otherwise: str = "",
    *,
    most: int = 1,
    cutoff: float = 0.6,
    spell: Callable[[str], str] = str,
) -> str:
    """Returns the question "did you mean …?" with at most `most` names; `otherwise` if none is similar.

    `cutoff` is the least similarity, up to 1; `spell` formats a name.
    """
    close = get_close_matches(str(name), [*known], most, cutoff)
    return f"did you mean {' or '.join(map(spell, close))}?" if close else otherwise
