"""Markup in which every inserted string is escaped unless it is markup already."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from markupsafe import Markup

from clip_eval.results import in_percent

CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


class Html(Markup):
    """Text that is markup: it is inserted unchanged, and its `format` and `join` escape what they insert."""

    @classmethod
    def escape(cls, value: Any, /) -> Html:
        """Returns the value escaped, with control characters and lone surrogates replaced."""
        return super().escape(value if isinstance(value, Html) else CONTROL.sub("\ufffd", str(value)))


def fill(template: str, *values: Any, **named: Any) -> Html:
    """Returns `template.format` with escaped values."""
    return Html(template).format(*values, **named)


def join(parts: Iterable[Any], between: str = "") -> Html:
    """Returns the escaped parts in a row."""
    return Html(between).join(parts)


def element(tag: str, *content: Any, **attributes: Any) -> Html:
    """Returns an element. `kind` is its class; floats are rounded to one decimal, and `_` in a name becomes `-`."""
    words = []
    for name, value in attributes.items():
        name = name.replace("kind", "class").replace("_", "-")
        words.append(fill(' {}="{}"', name, f"{value:.1f}" if isinstance(value, float) else value))
    return fill("<{0}{1}>{2}</{0}>", tag, join(words), join(content))


def cut(text: str, limit: int) -> str:
    """Returns the text, or its first characters and an ellipsis."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def foreign(text: str, limit: int = 160) -> Html:
    """Returns a caption or URL, cut to `limit` characters and isolated from the page's text direction."""
    short = cut(text, limit)
    return fill('<bdi title="{}">{}</bdi>', text[:2000], short) if short is not text else fill("<bdi>{}</bdi>", short)


def table(header: Sequence[Any], rows: Iterable[Sequence[Any]], numeric: Sequence[int] = ()) -> Html:
    """Returns a table; the columns in `numeric` are aligned to the right."""

    def cells(tag: str, values: Sequence[Any]) -> Html:
        return join(
            fill("<{0}{1}>{2}</{0}>", tag, Html(' class="n"') if i in numeric else "", value)
            for i, value in enumerate(values)
        )

    body = join(fill("<tr>{}</tr>", cells("td", row)) for row in rows)
    head = fill("<thead><tr>{}</tr></thead>", cells("th", header))
    return fill('<div class="scroll"><table>{}<tbody>{}</tbody></table></div>', head, body)


def card(value: str, name: str, below: str = "") -> Html:
    """Returns a key figure for the top of the page."""
    return fill('<div class="figure"><b>{}</b><span>{}</span><small>{}</small></div>', value, name, below)


def figure(caption: Any, *parts: Any, kind: str = "") -> Html:
    """Returns a panel; `kind` is "wide" for one that stands alone, "span" for one over two columns of a grid."""
    return fill('<figure class="{}"><figcaption>{}</figcaption>{}</figure>', kind, caption, join(parts))


def grid(parts: Iterable[Any], kind: str = "figures") -> Html:
    return fill('<div class="{}">{}</div>', kind, join(parts))


def gallery(caption: Any, parts: Iterable[Any], kind: str = "cards") -> Html:
    """Returns a wide panel with a grid."""
    return figure(caption, grid(parts, kind), kind="wide")


def note(template: str, *values: Any) -> Html:
    """Returns a remark in small print."""
    return fill('<p class="note">{}</p>', fill(template, *values))


def bars(rows: Sequence[tuple[Any, float, str]], tone: str = "accent", whole: float | None = None) -> Html:
    """Returns horizontal bars of (label, value, figure). The longest value, or `whole`, fills the line."""
    whole = whole or max((value for _, value, _ in rows), default=1) or 1
    bar = '<span class="track"><i class="{}" style="width:{:.2f}%"></i></span>'
    lines = [
        fill(
            f'<span class="label">{{}}</span>{bar}<span class="n">{{}}</span>',
            label,
            tone,
            100 * min(1, value / whole),
            text,
        )
        for label, value, text in rows
    ]
    return grid(lines, "bars")


def count(value: float) -> str:
    return f"{value:,.0f}"


def percent(share: float, digits: int = 1) -> str:
    return f"{in_percent(share, digits)} %"


def duration(seconds: float) -> str:
    """Returns a duration to a tenth of a second; to a second from a minute on, to a minute from an hour on."""
    if round(seconds, 1) < 60:
        return "< 0.1 s" if 0 < seconds < 0.05 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min"
