"""Small charts as inline SVG. Colours come from the page's style sheet, which follows light and dark."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clip_eval.report.html import Html, cut, element, join
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
        right, parts = self.width - self.right, []
        for tick in ticks(self.y0, self.y1, 5):
            y = self.y(tick)
            parts.append(element("line", kind="grid", x1=self.left, x2=right, y1=y, y2=y))
            parts.append(element("text", number(tick), kind="end", x=self.left - 6, y=y + 3.5))
        for tick in ticks(self.x0, self.x1, 6):
            y = self.height - self.bottom + 15
            parts.append(element("text", number(tick), kind="mid", x=self.x(tick), y=y))
        middle = (self.left + right) / 2
        return join([*parts, element("text", x_name, kind="mid axis", x=middle, y=self.height - 4)])


def chart(width: int, height: int, title: str, *parts: Html) -> Html:
    size = {"viewBox": f"0 0 {width} {height}", "width": width, "height": height}
    return element("svg", *parts, **size, role="img", aria_label=title)


def histogram(title: str, edges: Sequence[float], counts: Sequence[int], open_end: bool = False) -> Html:
    """Returns bars for counts [N] between edges [N + 1]. With `open_end` the last count includes all above."""
    width, height = 330, 150
    frame = _Frame(width=width, height=height, x0=edges[0], x1=edges[-1], y0=0, y1=max([*counts, 1]), bottom=20)
    ends = [f"– {number(edge)}" for edge in edges[1:-1]] + ["and more" if open_end else f"– {number(edges[-1])}"]
    boxes = []
    for low, high, end, n in zip(edges[:-1], edges[1:], ends, counts, strict=True):
        if n:
            hover = element("title", f"{number(low)} {end}: {n:,}")
            x, y, across = frame.x(low), frame.y(n), max(frame.x(high) - frame.x(low) - 1, 0.5)
            boxes.append(element("rect", hover, kind="accent", x=x, y=y, width=across, height=frame.y(0) - y))
    return chart(width, height, title, frame.axes(""), *boxes)


def lines(title: str, curves: Sequence[Line], width: int = 330, height: int = 170, x_name: str = "step") -> Html:
    """Returns curves over one x axis, with a legend if there are several. The y axis may start at 0."""
    xs, ys = [value for curve in curves for value in curve.x], [value for curve in curves for value in curve.y]
    low, high = min(ys), max(ys)
    base = 0.0 if low >= 0 and low < 0.6 * high else low - 0.08 * ((high - low) or abs(high) or 1)
    top = high + 0.05 * ((high - base) or 1)
    room = 28 if len(curves) > 1 else 10
    frame = _Frame(width=width, height=height, x0=min(xs), x1=max(xs), y0=base, y1=top, top=room)
    parts, at = [frame.axes(x_name)], frame.left
    for curve in curves:
        thin = _thin(curve)
        path = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in thin)
        parts.append(element("polyline", kind=f"line {curve.tone}", points=path))
        for x, y in thin if curve.dots else ():
            hover = element("title", f"{x_name} {number(x)}: {y:.4g}")
            parts.append(element("circle", hover, kind=curve.tone, cx=frame.x(x), cy=frame.y(y), r=3))
        if len(curves) > 1:
            parts.append(element("rect", kind=curve.tone, x=at, y=8, width=14, height=3))
            parts.append(element("text", curve.name, x=at + 19, y=13))
            at += 34 + 7 * len(curve.name)
    return chart(width, height, title, *parts)


def _thin(curve: Line) -> list[tuple[float, float]]:
    """Returns at most POINTS points: means of equal runs."""
    runs = np.array_split(np.arange(len(curve.x)), min(POINTS, len(curve.x)))
    x, y = np.asarray(curve.x, float), np.asarray(curve.y, float)
    return [(float(x[run].mean()), float(y[run].mean())) for run in runs]


def interval(value: float, low: float, high: float, chance: float, width: int = 220) -> Html:
    """Returns a value with its interval on a line from 0 to 1; the tick is chance."""
    left, right, at, tick = (4 + share * (width - 8) for share in (low, high, value, chance))
    return chart(
        width,
        18,
        f"{value:.3f}, between {low:.3f} and {high:.3f}, chance {chance:.3f}",
        element("line", kind="grid", x1=4, x2=width - 4, y1=9, y2=9),
        element("line", kind="chance", x1=tick, x2=tick, y1=3, y2=15),
        element("line", kind="line accent thick", x1=left, x2=right, y1=9, y2=9),
        element("circle", kind="accent", cx=at, cy=9, r=4),
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
    """Returns (row, column, share between 0 and 1, hover text) as squares whose strength is the share.

    Squares off the diagonal have the colour of a mistake. With `text` the share is written into the square, in percent.
    """
    across, down, style = cell * len(columns), cell * len(rows), f"font-size:{size}px"
    parts = [element("rect", kind="ground", x=margin, y=margin, width=across, height=down)]
    middles = [margin + cell * (i + 0.5) + size * 0.35 for i in range(max(len(rows), len(columns)))]
    for y, name in zip(middles, rows, strict=False):
        parts.append(element("text", cut(name, 20), kind="end", x=margin - 4, y=y, style=style))
    for x, name in zip(middles, columns, strict=False):
        turn = f"translate({x:.1f} {margin - 4}) rotate(-90)"
        parts.append(element("text", cut(name, 20), transform=turn, style=style))
    for row, column, share, hover in cells:
        x, y, tone = margin + cell * column, margin + cell * row, "accent" if row == column or text else "bad"
        box = {"x": x, "y": y, "width": cell - 1, "height": cell - 1}
        strength = f"{0.1 + 0.9 * math.sqrt(share):.2f}" if share else "0"
        parts.append(element("rect", element("title", hover), kind=tone, **box, fill_opacity=strength))
        if text:
            kind, said = f"mid {'onmark' if share > 0.12 else ''}", in_percent(share, 0).replace(" ", "")
            parts.append(element("text", said, kind=kind, x=x + cell / 2, y=y + cell / 2 + 4, style=style))
    return chart(margin + across + 4, margin + down + 4, title, *parts)


def ticks(low: float, high: float, about: int) -> list[float]:
    """Returns about `about` round numbers inside [low, high]."""
    span = high - low
    if not span > 0:
        return [low]
    rough = span / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    return [step * i for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def number(value: float) -> str:
    """Returns a short label: 0.25, 12, 34k, 2M, 1e-05."""
    if 0 < abs(value) < 1e-3:
        return f"{value:.1e}".replace(".0e", "e")
    for limit, unit, suffix in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if abs(value) >= limit:
            return f"{value / unit:.3g}{suffix}"
    return f"{value:.4g}"
