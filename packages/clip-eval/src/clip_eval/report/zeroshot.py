"""Figures of zero-shot classification: recall of the classes, confusions, and classified samples."""

from collections.abc import Sequence
from typing import Any

from clip_eval.report.html import Html, bars, figure, fill, foreign, gallery, grid, note, percent, table
from clip_eval.report.images import Images
from clip_eval.report.svg import heat_map

MOST_CLASSES = 100  # of a confusion matrix that can be read
MOST_BARS = 120


def figures(details: dict[str, Any], images: Images | None) -> list[Html]:
    """Returns the figures of a zero-shot benchmark."""
    classes, counts, correct = details["classes"], details["counts"], details["correct"]
    mistakes, factors = _mistakes(details), _factors(classes)
    parts = [_factor_map(details, *factors, mistakes)] if factors else []
    order = sorted(range(len(classes)), key=lambda i: (-(correct[i] / counts[i]) if counts[i] else 1, classes[i]))
    shown = order if len(order) <= MOST_BARS else order[: MOST_BARS // 2] + order[-MOST_BARS // 2 :]
    shares = [right / n if n else 0 for right, n in zip(correct, counts, strict=True)]
    rows = [(foreign(classes[i], 40), shares[i], f"{correct[i]}/{counts[i]}") for i in shown]
    left_out = f", the {MOST_BARS // 2} best and worst" if len(shown) < len(order) else ""
    third = -(-len(rows) // 3)
    thirds = [bars(rows[start : start + third], whole=1) for start in range(0, len(rows), third)]
    parts.append(gallery(f"Correct per class of {len(classes)}{left_out}", thirds, "columns"))
    if len(classes) <= MOST_CLASSES:
        cell = max(9, min(24, 900 // len(classes)))
        cells = [
            (row, column, n / counts[row], f"{n} of {counts[row]} × {classes[row]} taken for {classes[column]}")
            for row, column, n in details["confusion"]
        ]
        matrix = heat_map("Confusion matrix", classes, classes, cells, cell=cell, size=min(11, cell - 1))
        caption = "Confusion: rows are the truth, columns the prediction; hover for counts"
        parts.append(figure(caption, fill('<div class="scroll">{}</div>', matrix), kind="wide"))
    if not factors:
        parts.append(mistakes)
    if images:
        cards = []
        for example in details["examples"]:
            truth = fill("truth: {}", foreign(example["label"], 40))
            predicted = fill("predicted: {}", foreign(example["predicted"], 40))
            tone = "good" if example["rank"] == 0 else "bad"
            cards.append(images.card(example["key"], truth, predicted, tone=tone))
        parts.append(gallery("Samples and their predictions, drawn by uid", cards))
    return parts


def _mistakes(details: dict[str, Any]) -> Html:
    classes, counts = details["classes"], details["counts"]
    wrong = sorted((cell for cell in details["confusion"] if cell[0] != cell[1]), key=lambda c: (-c[2], c[0], c[1]))
    names = [foreign(name, 40) for name in classes]
    body = [(names[row], names[column], f"{n} of {counts[row]}") for row, column, n in wrong[:10]]
    return figure("Most frequent mistakes", table(("truth", "taken for", "times"), body, (2,)))


def _factors(classes: Sequence[str]) -> tuple[list[str], list[str]] | None:
    """Returns the first and last words if the classes are exactly all pairs of them, else None."""
    pairs = [name.split(" ") for name in classes]
    if any(len(pair) != 2 for pair in pairs):
        return None
    first, last = (list(dict.fromkeys(words)) for words in zip(*pairs, strict=True))
    complete = len(classes) == len(first) * len(last) == len(set(classes))
    return (first, last) if complete and min(len(first), len(last)) > 1 else None


def _factor_map(details: dict[str, Any], first: list[str], last: list[str], beside: Html) -> Html:
    """Returns the accuracy per pair, and how often each word alone is right."""
    classes, counts, correct = details["classes"], details["counts"], details["correct"]
    cells = []
    for i, name in enumerate(classes):
        row, column = name.split(" ")
        if counts[i]:
            hover = f"{name}: {correct[i]} of {counts[i]}"
            cells.append((first.index(row), last.index(column), correct[i] / counts[i], hover))
    named = {"first word right": 0, "second word right": 0, "both right": sum(correct)}
    for truth, predicted, n in details["confusion"]:
        for word, name in enumerate(("first word right", "second word right")):
            named[name] += n * (classes[truth].split(" ")[word] == classes[predicted].split(" ")[word])
    words = [(name, n / (sum(counts) or 1), percent(n / (sum(counts) or 1))) for name, n in named.items()]
    chances = note("Chance is {} and {}.", percent(1 / len(first)), percent(1 / len(last)))
    word_map = heat_map("Accuracy by word", first, last, cells, cell=46, margin=76, size=12, text=True)
    alone = figure("Each word on its own", bars(words, tone="good", whole=1), chances)
    return grid([figure("Accuracy in percent by first and second word", word_map), grid([alone, beside], "stack")])
