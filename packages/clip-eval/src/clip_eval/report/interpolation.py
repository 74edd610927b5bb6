"""The report's section on models between two, such as a pretrained and a fine-tuned one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from clip_eval.report.evaluation import metric_name
from clip_eval.report.html import card, figure, foreign, grid, note, percent, table
from clip_eval.report.inputs import Inputs, Section
from clip_eval.report.svg import Line, lines
from clip_eval.results import Row, in_percent, interval_in_percent

Points = Sequence[dict[str, Any]]
"""[{"alpha": share of the second model, "rows": its result rows}, …]"""


def interpolation(inputs: Inputs) -> Section | None:
    """Returns the curve of each metric over alpha, and the table of all values."""
    points = inputs.curve
    if not points:
        return None
    charts, body, cards = [], [], []
    for benchmark, metric, found in _curves(points):
        name = f"{benchmark}: {metric_name(metric)}"
        x, y = [alpha for alpha, _ in found], [100 * row["value"] for _, row in found]
        curve = Line(name="value", x=x, y=y, dots=True)
        chance = Line(name="chance", x=[x[0], x[-1]], y=[100 * found[0][1]["chance"]] * 2, tone="bad")
        charts.append(figure(foreign(f"{name}, %"), lines(name, [curve, chance], x_name="alpha")))
        alpha, best = _best(found)
        cards.append(card(percent(best["value"]), name, f"best, at alpha {alpha:g}"))
        body += [
            (foreign(benchmark), metric_name(metric), f"{alpha:g}", percent(row["value"], 2), interval_in_percent(row))
            for alpha, row in found
        ]
    parts = [
        note("Weights are (1 − alpha) times those of the first model and alpha times those of the second."),
        grid(charts),
        table(("benchmark", "metric", "alpha", "value", "95 % interval"), body, numeric=(2, 3)),
    ]
    return Section(name="interpolation", title="Between two models", parts=parts, cards=cards)


def format_curve(points: Points) -> str:
    """Returns a table for a terminal: a line for each alpha, a column for each benchmark and metric, in percent."""
    curves = list(_curves(points))
    header = ["alpha", *(f"{benchmark} {metric}" for benchmark, metric, _ in curves)]
    cells = [header]
    for index, point in enumerate(points):
        cells.append([f"{point['alpha']:g}", *(in_percent(found[index][1]["value"], 2) for _, _, found in curves)])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    rows = ["  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)) for line in cells]
    return "\n".join(rows)


def _curves(points: Points) -> Iterator[tuple[str, str, list[tuple[float, Row]]]]:
    """Yields (benchmark, metric, [(alpha, row), …]) in the order of the first point's rows."""
    tables = [(point["alpha"], {(row["benchmark"], row["metric"]): row for row in point["rows"]}) for point in points]
    for key in tables[0][1]:
        yield *key, [(alpha, rows[key]) for alpha, rows in tables if key in rows]


def _best(found: Sequence[tuple[float, Row]]) -> tuple[float, Row]:
    return max(found, key=lambda point: point[1]["value"])
