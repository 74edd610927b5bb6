"""The report's section on the evaluation: the table of results, and figures for each benchmark."""

from collections.abc import Callable, Sequence
from typing import Any

from clip_core.registry import Registry
from clip_core.store import Store
from clip_eval.report.html import Html, card, count, fill, foreign, join, note, percent, table
from clip_eval.report.images import Images
from clip_eval.report.inputs import Inputs, Section
from clip_eval.report.svg import interval
from clip_eval.results import COUNTS, Row, details_file, first_rows, interval_in_percent

HEADLINES = ("top1", "image_to_text_recall@1", "text_to_image_recall@1")
# Only registered kinds: results are data, and the report imports no module that data name.
FIGURES: Registry[Callable[[dict[str, Any], Images | None], list[Html]]] = Registry(
    "kind of figures",
    {"zeroshot": "clip_eval.report.zeroshot:figures", "retrieval": "clip_eval.report.retrieval:figures"},
)
"""functions from the details of a benchmark and the images of its dataset (None if it is gone), by kind"""


def evaluation(inputs: Inputs) -> Section | None:
    """Returns the table of results, and the figures of each benchmark whose details exist."""
    rows = inputs.results
    if not rows:
        return None
    store = Store(inputs.config.evaluation)
    parts = [_table(rows)]
    for name, first in first_rows(rows).items():
        file = details_file(name)
        if not store.exists(file) or first["kind"] not in FIGURES:
            continue
        details = store.read_json(file)
        if details["fingerprint"] != first["fingerprint"]:
            parts.append(note("{}: its details are of another run, evaluate again to show them.", foreign(name)))
            continue
        figures = FIGURES.get(first["kind"])(details, inputs.images(details["dataset"]))
        parts.append(fill("<h3>{}</h3>{}", foreign(name), join(figures)))
    cards = []
    for row in rows:
        if row["metric"] in HEADLINES:
            name = f"{row['benchmark']}: {metric_name(row['metric'])}"
            cards.append(card(percent(row["value"]), name, f"chance {percent(row['chance'])}"))
    return Section(name="evaluation", title="Evaluation", parts=parts, cards=cards)


def metric_name(metric: str) -> str:
    """Returns the name of a metric in words."""
    return metric.replace("_to_", " → ").replace("_", " ").replace("top1", "top-1").replace("top5", "top-5")


def _table(rows: Sequence[Row]) -> Html:
    body = [
        (
            foreign(row["benchmark"]),
            metric_name(row["metric"]),
            fill("<b>{}</b>", percent(row["value"], 2)),
            interval_in_percent(row),
            interval(row["value"], row["low"], row["high"], row["chance"]),
            percent(row["chance"], 2),
            count(row["n"]),
        )
        for row in rows
    ]
    remarks = []
    for name, first in first_rows(rows).items():
        said = [f"{count(first[key])} {what}" for key, what in COUNTS.items() if first.get(key)]
        data = fill("{}{}", foreign(first["dataset"]), "; " + ", ".join(said) if said else "")
        protocol = first["precision"], first["model_sha256"][:12], first["fingerprint"][:12]
        remarks.append(note("{}: {}, {}; model {}, protocol {}.", foreign(name), data, *protocol))
    header = ("benchmark", "metric", "value", "95 % interval", "0 … 1, tick: chance", "chance", "n")
    return join([table(header, body, numeric=(2, 3, 5, 6)), *remarks])
