"""The report's evaluation section: the table of results, and what stands behind each number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from clip_core.store import Store
from clip_eval.report.html import Html, bars, count, figure, fill, foreign, grid, join, note, percent, section, table
from clip_eval.report.pictures import Pictures
from clip_eval.report.svg import heat_map, interval
from clip_eval.results import COUNTS, Row, in_percent

MOST_CLASSES = 100  # of a confusion matrix that can be read
MOST_BARS = 120

PicturesOf = Callable[[str], Pictures | None]


def evaluation_section(rows: Sequence[Row], store: Store, pictures_of: PicturesOf) -> Html:
    """`pictures_of` gives the pictures of a dataset root, or None when it is gone."""
    parts = [_table(rows)]
    for task in dict.fromkeys(row["task"] for row in rows):
        name = f"details/{task}.json"
        if not store.exists(name):
            continue
        details = store.read_json(name)
        if details["fingerprint"] != next(row["fingerprint"] for row in rows if row["task"] == task):
            parts.append(note("{}: its details are of another run, evaluate again to show them.", foreign(task)))
            continue
        pictures = pictures_of(details["root"])
        shown = _zero_shot(details, pictures) if details["kind"] == "zeroshot" else _retrieval(details, pictures)
        parts.append(fill("<h3>{}</h3>{}", foreign(task), join(shown)))
    return section("evaluation", "Evaluation", *parts)


def metric_name(metric: str) -> str:
    """A metric's name as people say it."""
    return metric.replace("_to_", " → ").replace("_", " ").replace("top1", "top-1").replace("top5", "top-5")


def _table(rows: Sequence[Row]) -> Html:
    body = [
        (
            foreign(row["task"]),
            metric_name(row["metric"]),
            fill("<b>{}</b>", percent(row["value"], 2)),
            f"{in_percent(row['low'], 2)} – {in_percent(row['high'], 2)}",
            interval(row["value"], row["low"], row["high"], row["chance"]),
            percent(row["chance"], 2),
            count(row["n"]),
        )
        for row in rows
    ]
    remarks = []
    for task in dict.fromkeys(row["task"] for row in rows):
        first = next(row for row in rows if row["task"] == task)
        said = [f"{count(first[name])} {what}" for name, what in COUNTS.items() if first.get(name)]
        remarks.append(
            note(
                "{}: {}{}, {}; model {}, protocol {}.",
                foreign(task),
                foreign(first["dataset"]),
                "; " + ", ".join(said) if said else "",
                first["precision"],
                first["model_sha256"][:12],
                first["fingerprint"][:12],
            )
        )
    header = ("task", "metric", "value", "95 % interval", "0 … 1, tick: chance", "chance", "n")
    return join([table(header, body, numeric=(2, 3, 5, 6)), *remarks])


def _zero_shot(details: dict[str, Any], pictures: Pictures | None) -> list[Html]:
    classes, counts, correct = details["classes"], details["counts"], details["correct"]
    parts = []
    mistakes = _mistakes(details)
    if factors := _factors(classes):
        parts.append(_factor_map(details, *factors, mistakes))
    order = sorted(range(len(classes)), key=lambda i: (-(correct[i] / counts[i]) if counts[i] else 1, classes[i]))
    shown = order if len(order) <= MOST_BARS else order[: MOST_BARS // 2] + order[-MOST_BARS // 2 :]
    rows = [
        (foreign(classes[i], 40), correct[i] / counts[i] if counts[i] else 0, f"{correct[i]}/{counts[i]}")
        for i in shown
    ]
    left_out = f", the {MOST_BARS // 2} best and worst" if len(shown) < len(order) else ""
    parts.append(
        figure(
            f"Correct per class of {len(classes)}{left_out}",
            grid((bars(part, whole=1) for part in _thirds(rows)), "columns"),
            kind="wide",
        )
    )
    confusion = [tuple(cell) for cell in details["confusion"]]
    if len(classes) <= MOST_CLASSES:
        cell = max(9, min(24, 900 // len(classes)))
        cells = [
            (row, column, n / counts[row], f"{n} of {counts[row]} × {classes[row]} taken for {classes[column]}")
            for row, column, n in confusion
        ]
        matrix = heat_map("Confusion matrix", classes, classes, cells, cell=cell, size=min(11, cell - 1))
        caption = "Confusion: rows are the truth, columns the prediction; hover for counts"
        parts.append(figure(caption, fill('<div class="scroll">{}</div>', matrix), kind="wide"))
    if not factors:
        parts.append(mistakes)
    if pictures:
        cards = [
            pictures.card(
                example["key"],
                fill("truth: {}", foreign(example["label"], 40)),
                fill("predicted: {}", foreign(example["predicted"], 40)),
                tone="good" if example["rank"] == 0 else "bad",
            )
            for example in details["examples"]
        ]
        parts.append(figure("Samples and their predictions, drawn by uid", grid(cards, "cards"), kind="wide"))
    return parts


def _mistakes(details: dict[str, Any]) -> Html:
    classes, counts = details["classes"], details["counts"]
    wrong = sorted((cell for cell in details["confusion"] if cell[0] != cell[1]), key=lambda c: (-c[2], c[0], c[1]))
    body = [
        (foreign(classes[row], 40), foreign(classes[column], 40), f"{n} of {counts[row]}")
        for row, column, n in wrong[:10]
    ]
    return figure("Most frequent mistakes", table(("truth", "taken for", "times"), body, (2,)))


def _thirds(rows: list[Any]) -> list[list[Any]]:
    size = -(-len(rows) // 3)
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _factors(classes: Sequence[str]) -> tuple[list[str], list[str]] | None:
    """First and last words when the classes are exactly all pairs of them; None otherwise."""
    words = [name.split(" ") for name in classes]
    if any(len(pair) != 2 for pair in words):
        return None
    first, last = list(dict.fromkeys(pair[0] for pair in words)), list(dict.fromkeys(pair[1] for pair in words))
    complete = len(classes) == len(first) * len(last) == len(set(classes))
    return (first, last) if complete and min(len(first), len(last)) > 1 else None


def _factor_map(details: dict[str, Any], first: list[str], last: list[str], beside: Html) -> Html:
    """Accuracy per pair, and how often each word alone is right."""
    classes, counts, correct = details["classes"], details["counts"], details["correct"]
    cells = []
    for i, name in enumerate(classes):
        row, column = name.split(" ")
        if counts[i]:
            hover = f"{name}: {correct[i]} of {counts[i]}"
            cells.append((first.index(row), last.index(column), correct[i] / counts[i], hover))
    right = [0, 0]
    for truth, predicted, n in details["confusion"]:
        for word in (0, 1):
            right[word] += n * (classes[truth].split(" ")[word] == classes[predicted].split(" ")[word])
    total = sum(counts) or 1
    words = [
        ("first word right", right[0] / total, percent(right[0] / total)),
        ("second word right", right[1] / total, percent(right[1] / total)),
        ("both right", sum(correct) / total, percent(sum(correct) / total)),
    ]
    chances = note("Chance is {} and {}.", percent(1 / len(first)), percent(1 / len(last)))
    word_map = heat_map("Accuracy by word", first, last, cells, cell=46, margin=76, size=12, text=True)
    return grid(
        [
            figure("Accuracy in percent by first and second word", word_map),
            grid([figure("Each word on its own", bars(words, tone="good", whole=1), chances), beside], "stack"),
        ]
    )


def _retrieval(details: dict[str, Any], pictures: Pictures | None) -> list[Html]:
    if pictures is None:
        return [note("The dataset {} is not there: no pictures.", foreign(details["root"]))]
    to_text = [
        fill(
            '<div class="query">{}<ol>{}</ol></div>',
            pictures.thumbnail(example["query"]),
            join([*map(_answer, example["top"]), _missed(example)]),
        )
        for example in details["image_to_text"]
    ]
    to_image = [
        fill(
            '<div class="answers"><p>{}{}</p><div>{}</div></div>',
            foreign(example["query"], 140),
            fill(" <small>first match at rank {}</small>", example["rank"] + 1),
            join(
                fill(
                    '<span class="{}">{}</span>',
                    "hit" if found["positive"] else "",
                    pictures.thumbnail(found["candidate"]),
                )
                for found in example["top"]
            ),
        )
        for example in details["text_to_image"]
    ]
    return [
        figure("From a picture to its captions: the five best", grid(to_text, "queries"), kind="wide"),
        figure("From a caption to its pictures: the five best", grid(to_image, "queries"), kind="wide"),
    ]


def _tone(found: dict[str, Any]) -> str:
    return "hit" if found["positive"] else ""


def _answer(found: dict[str, Any]) -> Html:
    return fill('<li class="{}">{}</li>', _tone(found), foreign(found["candidate"], 110))


def _missed(example: dict[str, Any]) -> Html:
    """The right caption, when it is not among those shown."""
    if any(found["positive"] for found in example["top"]):
        return Html("")
    return fill('<li class="missed" value="{}">{}</li>', example["rank"] + 1, foreign(example["best"], 110))
