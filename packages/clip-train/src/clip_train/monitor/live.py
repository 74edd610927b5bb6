"""live.html: one page that shows how a run is doing, without a server. It is written anew while the run goes on."""

from __future__ import annotations

import html
import math
import os
import time
from collections import deque
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

POINTS = 400  # of a curve: above it, every second point is left out
EVENTS = 12
PAUSE_S = 5.0  # least seconds between two writes, but for the last one
WIDTH, HEIGHT = 420, 150
PANELS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("loss", ("loss", "val_loss")),
    ("learning rate", ("lr",)),
    ("gradient norm", ("grad_norm",)),
    ("samples/s", ("samples_per_s",)),
    ("similarity of pairs, and of others", ("positive_similarity", "negative_similarity")),
    ("seconds of waiting for data, per step", ("loader_wait_s",)),
)
STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --dim: #667; --line: #d8dade; --back: #fff;
  --a: #2060c0; --b: #c05a10 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e7ea; --dim: #9aa; --line: #3a3d42; --back: #16181b; --a: #6fa8ff; --b: #ff9d5c }
}
body { font: 14px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--back); margin: 1.5rem auto;
  max-width: 62rem; padding: 0 1rem }
h1 { font-size: 1.25rem; margin: 0 } h2 { font-size: 1rem; margin: 1.5rem 0 .4rem }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(20rem, 1fr)); gap: 1.2rem; margin-top: 1.2rem }
figure { margin: 0 } figcaption { display: flex; justify-content: space-between; gap: 1rem }
svg { width: 100%; height: auto; display: block; border: solid var(--line); border-width: 0 0 1px 1px }
polyline, circle { fill: none; stroke: var(--a); stroke-width: 1.5; vector-effect: non-scaling-stroke }
.second { stroke: var(--b) } .b { color: var(--b) } .a { color: var(--a) } circle { fill: currentColor }
.dim, td:first-child { color: var(--dim) } table { border-collapse: collapse; width: 100% }
td { padding: .15rem .8rem .15rem 0; vertical-align: top; overflow-wrap: anywhere }
progress { width: 100%; margin-top: .6rem }
"""


class LivePage:
    """Collects the lines of a run's log and shows them."""

    def __init__(self, path: Path, rows: Iterable[Mapping[str, Any]] = ()) -> None:
        """`rows`: the lines that a resumed run already has."""
        self._path, self._written = path, 0.0
        self._curves: dict[str, list[tuple[int, float]]] = {name: [] for _, names in PANELS for name in names}
        self._events: deque[Mapping[str, Any]] = deque(maxlen=EVENTS)
        self._last: Mapping[str, Any] = {}
        for row in rows:
            self.add(row)

    def add(self, row: Mapping[str, Any]) -> None:
        """Adds a line of the log."""
        for name in self._curves.keys() & row.keys():
            value = row[name]
            if isinstance(value, (int, float)) and math.isfinite(value):
                curve = self._curves[name]
                curve.append((row["step"], value))
                if len(curve) > POINTS:
                    del curve[-2::-2]  # keeps the newest
        if "event" in row:
            self._events.append(row)
        else:
            self._last = row

    def write(self, steps: int, *, over: bool = False) -> None:
        """Replaces the page, at most every PAUSE_S seconds; `over`: the process ends."""
        now = time.monotonic()
        if not over and now - self._written < PAUSE_S:
            return
        self._written = now
        beside = self._path.with_name(f".{self._path.name}")
        beside.write_text(self.page(steps, over=over), encoding="utf-8")
        os.replace(beside, self._path)  # who reads it never finds half a page; it need not survive a power cut

    def page(self, steps: int, *, over: bool) -> str:
        """Returns the whole page."""
        step, name = self._last.get("step", 0), html.escape(self._path.parent.name)
        panels = "".join(self._panel(title, names) for title, names in PANELS if any(map(self._curves.get, names)))
        last = "".join(_row(key, value) for key, value in self._last.items())
        events = "".join(_row(f"step {row['step']}", _told(row)) for row in reversed(self._events))
        refresh = "" if over else '<meta http-equiv="refresh" content="10">'
        state = "ended" if over else "running"
        return (
            f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{name}: step {step:,}</title>{refresh}'
            f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style>\n'
            f"<h1>{name}</h1><div class=dim>step {step:,} of {steps:,}{self._left(steps, over)}; {state}, "
            f"written {time.strftime('%Y-%m-%d %H:%M:%S %Z')}</div>"
            f'<progress max="{steps}" value="{step}" aria-label="steps done"></progress>\n'
            f"<div class=panels>{panels}</div>\n<h2>Last events</h2><table>{events}</table>\n"
            f"<h2>Last line of the log</h2><table>{last}</table></html>\n"
        )

    def _left(self, steps: int, over: bool) -> str:
        rate, seen = self._last.get("samples_per_s", 0), self._last.get("samples", 0)
        if over or not rate or not seen:
            return ""
        seconds = (steps - self._last["step"]) * (seen / self._last["step"]) / rate
        return f", about {seconds / 3600:.1f} h left" if seconds > 3600 else f", about {seconds / 60:.0f} min left"

    def _panel(self, title: str, names: tuple[str, ...]) -> str:
        """Returns one diagram with the curves of these names on the same axes."""
        curves = [self._curves[name] for name in names if self._curves[name]]
        steps = [step for curve in curves for step, _ in curve]
        values = [value for curve in curves for _, value in curve]
        (left, right), (low, high) = (min(steps), max(steps)), (min(values), max(values))
        lines, shown = [], []
        for number, curve in enumerate(curves):
            points = [
                (
                    WIDTH * (step - left) / max(right - left, 1),
                    HEIGHT - 5 - (HEIGHT - 10) * (value - low) / ((high - low) or 1),
                )
                for step, value in curve
            ]
            kind = "second" if number else "first"
            if len(points) == 1:
                lines.append(f'<circle class="{kind}" cx="{points[0][0]:.1f}" cy="{points[0][1]:.1f}" r="3"/>')
            else:
                path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
                lines.append(f'<polyline class="{kind}" points="{path}"/>')
            shown.append(f'<span class="{"b" if number else "a"}">{curve[-1][1]:.4g}</span>')
        return (
            f"<figure><figcaption><span>{html.escape(title)}</span><span>{' '.join(shown)}</span></figcaption>"
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(title)}">{"".join(lines)}</svg>'
            f"<div class=dim>{low:.4g} to {high:.4g}, steps {left:,} to {right:,}</div></figure>"
        )


def _row(key: str, value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return f"<tr><td>{html.escape(key)}</td><td>{html.escape(text)}</td></tr>"


def _told(row: Mapping[str, Any]) -> str:
    parts = [
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in row.items()
        if key not in ("step", "event")
    ]
    return f"{row['event']} {', '.join(parts)}"[:300]
