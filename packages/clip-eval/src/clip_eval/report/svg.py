"""Small charts as inline SVG. Colours come from the page's style sheet, so that they follow light and dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clip_eval.report.html import Html, fill, join
from clip_eval.results import in_percent

POINTS = 240  # of a line: more than this cannot be seen in its width


@dataclass(frozen=True, kw_only=True)
class Line:
    """A curve."""

    name: str
    """Shown in the legend."""
    x: Sequence[float]
    """Abscissae, ascending."""
    y: Sequence[float]
    """Ordinates."""
    tone: str = "accent"
    """Class of the style sheet: accent, good, bad, warm."""
    dots: bool = False
    """Marks each point: for few of them."""


@dataclass(frozen=True, kw_only=True)
class _Frame:
    """Maps data to a plot area with axes."""

    width: int
    height: int
    x0: float
    x1: float
    y0: float
    y1: float
    left: int = 52
    right: int = 14
    top: int = 10
    bottom: int = 34

    def x(self, value: float) -> float:
        return self.left + (value - self.x0) / ((self.x1 - self.x0) or 1) * (self.width - self.left - self.right)

    def y(self, value: float) -> float:
        share = (value - self.y0) / ((self.y1 - self.y0) or 1)
        return self.height - self.bottom - share * (self.height - self.top - self.bottom)

    def axes(self, x_name: str) -> Html:
        parts = []
        for tick in ticks(self.y0, self.y1, 5):
            y = round(self.y(tick), 1)
            parts.append(
                fill(
                    '<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/><text x="{}" y="{}" class="end">{}</text>',
                    self.left,
                    self.width - self.right,
                    y,
                    y,
                    self.left - 6,
                    y + 3.5,
                    number(tick),
                )
            )
        for tick in ticks(self.x0, self.x1, 6):
            parts.append(
                fill(
                    '<text x="{}" y="{}" class="mid">{}</text>',
                    round(self.x(tick), 1),
                    self.height - self.bottom + 15,
                    number(tick),
                )
            )
        middle = (self.left + self.width - self.right) / 2
        parts.append(fill('<text x="{}" y="{}" class="mid axis">{}</text>', middle, self.height - 4, x_name))
        return join(parts)


def chart(width: int, height: int, title: str, *parts: Html) -> Html:
    return fill(
        '<svg viewBox="0 0 {0} {1}" width="{0}" height="{1}" role="img" aria-label="{2}">{3}</svg>',
        width,
        height,
        title,
        join(parts),
    )


def histogram(title: str, edges: Sequence[float], counts: Sequence[int], open_end: bool = False) -> Html:
    """Counts [N] between edges [N + 1]; with `open_end` the last count holds all above its lower edge."""
    width, height = 330, 150
    frame = _Frame(width=width, height=height, x0=edges[0], x1=edges[-1], y0=0, y1=max([*counts, 1]), bottom=20)
    ends = [f"– {number(edge)}" for edge in edges[1:-1]] + ["and more" if open_end else f"– {number(edges[-1])}"]
    boxes = join(
        fill(
            '<rect class="accent" x="{}" y="{}" width="{}" height="{}"><title>{} {}: {}</title></rect>',
            f"{frame.x(low):.1f}",
            f"{frame.y(value):.1f}",
            f"{max(frame.x(high) - frame.x(low) - 1, 0.5):.1f}",
            f"{frame.y(0) - frame.y(value):.1f}",
            number(low),
            end,
            f"{value:,}",
        )
        for low, high, end, value in zip(edges[:-1], edges[1:], ends, counts, strict=True)
        if value
    )
    return chart(width, height, title, frame.axes(""), boxes)


def lines(title: str, curves: Sequence[Line], width: int = 330, height: int = 170, x_name: str = "step") -> Html:
    """Curves over one x axis, with a legend when there are several. The y axis starts at 0 unless that flattens all."""
    xs, ys = [value for curve in curves for value in curve.x], [value for curve in curves for value in curve.y]
    low, high = min(ys), max(ys)
    base = 0.0 if low >= 0 and low < 0.6 * high else low - 0.08 * ((high - low) or abs(high) or 1)
    top = high + 0.05 * ((high - base) or 1)
    frame = _Frame(
        width=width, height=height, x0=min(xs), x1=max(xs), y0=base, y1=top, top=28 if len(curves) > 1 else 10
    )
    parts, at = [frame.axes(x_name)], frame.left
    for curve in curves:
        thin = _thin(curve)
        path = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in thin)
        parts.append(fill('<polyline class="line {}" points="{}"/>', curve.tone, path))
        if curve.dots:
            parts += [
                fill(
                    '<circle class="{}" cx="{}" cy="{}" r="3"><title>{} {}: {}</title></circle>',
                    curve.tone,
                    f"{frame.x(x):.1f}",
                    f"{frame.y(y):.1f}",
                    x_name,
                    number(x),
                    f"{y:.4g}",
                )
                for x, y in thin
            ]
        if len(curves) > 1:
            parts.append(
                fill(
                    '<rect class="{}" x="{}" y="8" width="14" height="3"/><text x="{}" y="13">{}</text>',
                    curve.tone,
                    at,
                    at + 19,
                    curve.name,
                )
            )
            at += 34 + 7 * len(curve.name)
    return chart(width, height, title, *parts)


def _thin(curve: Line) -> list[tuple[float, float]]:
    """At most POINTS points: means of equal runs."""
    runs = np.array_split(np.arange(len(curve.x)), min(POINTS, len(curve.x)))
    x, y = np.asarray(curve.x, float), np.asarray(curve.y, float)
    return [(float(x[run].mean()), float(y[run].mean())) for run in runs]


def interval(value: float, low: float, high: float, chance: float, width: int = 220) -> Html:
    """A value with its interval on a line from 0 to 1; the tick is chance."""
    x = [f"{4 + share * (width - 8):.1f}" for share in (low, high, value, chance)]
    return chart(
        width,
        18,
        f"{value:.3f}, between {low:.3f} and {high:.3f}, chance {chance:.3f}",
        fill('<line class="grid" x1="4" x2="{}" y1="9" y2="9"/>', width - 4),
        fill('<line class="chance" x1="{0}" x2="{0}" y1="3" y2="15"/>', x[3]),
        fill('<line class="line accent thick" x1="{}" x2="{}" y1="9" y2="9"/>', x[0], x[1]),
        fill('<circle class="accent" cx="{}" cy="9" r="4"/>', x[2]),
    )


def heat_map(
    title: str,
    rows: Sequence[str],
    columns: Sequence[str],
    cells: Sequence[tuple[int, int, float, str]],
    cell: int = 11,
    margin: int = 96,
    size: int = 9,
    text: bool = False,
) -> Html:
    """(row, column, share between 0 and 1, hover text) as squares whose strength is the share; rows down, columns up.

    The diagonal of a square map is outlined. With `text` the share is written into the square, in percent.
    """
    width, height = margin + cell * len(columns) + 4, margin + cell * len(rows) + 4
    parts = [
        fill(
            '<text x="{}" y="{}" class="end" style="font-size:{}px">{}</text>',
            margin - 4,
            round(margin + cell * (i + 0.5) + size * 0.35, 1),
            size,
            _cut(name),
        )
        for i, name in enumerate(rows)
    ]
    parts += [
        fill(
            '<text transform="translate({} {}) rotate(-90)" style="font-size:{}px">{}</text>',
            round(margin + cell * (i + 0.5) + size * 0.35, 1),
            margin - 4,
            size,
            _cut(name),
        )
        for i, name in enumerate(columns)
    ]
    parts.append(
        fill(
            '<rect class="ground" x="{0}" y="{0}" width="{1}" height="{2}"/>',
            margin,
            cell * len(columns),
            cell * len(rows),
        )
    )
    for row, column, share, hover in cells:
        x, y = margin + cell * column, margin + cell * row
        parts.append(
            fill(
                '<rect class="{}" x="{}" y="{}" width="{}" height="{}" fill-opacity="{}"><title>{}</title></rect>',
                "accent" if row == column or text else "bad",
                x,
                y,
                cell - 1,
                cell - 1,
                f"{0.1 + 0.9 * math.sqrt(share):.2f}" if share else "0",
                hover,
            )
        )
        if text:
            tone = "onmark" if share > 0.12 else ""
            parts.append(
                fill(
                    '<text x="{}" y="{}" class="mid {}" style="font-size:{}px">{}</text>',
                    x + cell / 2,
                    y + cell / 2 + 4,
                    tone,
                    size,
                    in_percent(share, 0).replace(" ", ""),
                )
            )
    return chart(width, height, title, *parts)


def _cut(name: str, limit: int = 20) -> str:
    return name if len(name) <= limit else name[: limit - 1] + "…"


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers inside [low, high], roughly `about` of them."""
    span = high - low
    if not span > 0:
        return [low]
    rough = span / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    return [step * i for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def number(value: float) -> str:
    """A short label: 0.25, 12, 3.4k, 2M, 1e-05."""
    if value == 0:
        return "0"
    size = abs(value)
    if size < 1e-3:
        return f"{value:.1e}".replace(".0e", "e")
    for limit, suffix in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size >= limit:
            return f"{value / (1e3 if suffix == 'k' else limit):.3g}{suffix}"
    return f"{value:.4g}"
