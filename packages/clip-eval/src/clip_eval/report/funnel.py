"""The funnel from planned rows to selections, with every reason for a loss and sums that are checked."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from clip_data.acquire.codes import Code
from clip_data.dataset import SCORE, SUCCESS, Dataset
from clip_eval.report.html import bars, card, count, fill, foreign, grid, note, percent
from clip_eval.report.inputs import Inputs, Section

CODES = {code.value: code for code in Code}
IMAGE_CLASS = "image"  # the error class of files that arrived and are not usable images


@dataclass(frozen=True, kw_only=True)
class FunnelStep:
    """The rows that are left after a step, and those that it lost."""

    name: str
    """Shown as the title."""
    kept: int
    """Rows left."""
    before: int
    """Rows that entered."""
    lost: list[tuple[str, str, int]] = field(default_factory=list)
    """(reason, its meaning, rows), largest first."""

    @property
    def adds_up(self) -> bool:
        return self.before == self.kept + sum(rows for _, _, rows in self.lost)


def read_funnel(dataset: Dataset, selections: Sequence[str]) -> list[FunnelStep]:
    """Returns the steps in order.

    A selection with a parent starts from the parent's rows, any other from all stored samples. Selections that do not
    exist are left out. Unfinished units count as not attempted.
    """
    done = dataset.committed("acquire")
    finished = [unit for unit in dataset.units if unit.name in done]
    codes: Counter[str] = Counter()
    for record in dataset.records("acquire", finished):
        codes.update(record["counts"])
    stored = codes.pop(SUCCESS, 0)
    attempted, planned = (sum(unit.rows for unit in units) for units in (finished, dataset.units))
    late = {code: n for code, n in codes.items() if code in CODES and CODES[code].error_class == IMAGE_CLASS}
    early = {code: n for code, n in codes.items() if code not in late}
    waiting = [("not_attempted", "units that are not finished yet", planned - attempted)] if planned > attempted else []
    fetched = stored + sum(late.values())
    steps = [
        FunnelStep(name="attempted", kept=attempted, before=planned, lost=waiting),
        FunnelStep(name="fetched", kept=fetched, before=attempted, lost=_reasons(early)),
        FunnelStep(name="decoded and stored", kept=stored, before=fetched, lost=_reasons(late)),
    ]
    known = dataset.selections()
    return steps + [_selection(dataset.selection(name), dataset, stored) for name in selections if name in known]


def _selection(found: dict[str, Any], dataset: Dataset, stored: int) -> FunnelStep:
    parent = (found["parent"] or {}).get("name")
    before = dataset.selection(parent)["kept"] if parent else stored
    upstream = {f"not in {parent}"} if parent else {"rejected"}
    lost = [(reason, "", n) for reason, n in found["counts"] if n and reason not in upstream]
    name = f"{found['name']} (of {parent})" if parent else found["name"]
    return FunnelStep(name=name, kept=found["kept"], before=before, lost=lost)


def meaning(code: str) -> str:
    """Returns the meaning of an error code; "" for a code of another engine."""
    return CODES[code].meaning if code in CODES else ""


def _reasons(codes: dict[str, int]) -> list[tuple[str, str, int]]:
    return [(code, meaning(code), n) for code, n in sorted(codes.items(), key=lambda item: (-item[1], item[0]))]


def funnel(inputs: Inputs) -> Section | None:
    """Returns the bars of the funnel's steps, each with its losses."""
    dataset = inputs.dataset
    if not dataset:
        return None
    steps = read_funnel(dataset, inputs.selections)
    whole = steps[0].before or 1
    parts = []
    for step in steps:
        text = f"{count(step.kept)} · {percent(step.kept / whole)}"
        bar = bars([(foreign(step.name, 60), step.kept, text)], whole=whole)
        losses = []
        for reason, words, rows in step.lost:
            losses.append((fill("<code>{}</code> {}", foreign(reason, 120), words), rows, count(rows)))
        lost = grid([bars(losses, tone="bad")], "lost")
        parts.append(grid([bar, lost], "step"))
        if not step.adds_up:
            numbers = (step.before, step.kept, sum(rows for _, _, rows in step.lost))
            text = "These numbers do not add up: {} entered, {} left, {} are accounted for."
            parts.append(note(text, *map(count, numbers)))
    if all(step.adds_up for step in steps):
        parts.append(note("Every row is accounted for: each step's losses sum to what it lost."))
    for name in dataset.column_sets():
        done = dataset.committed(SCORE + name)
        records = dataset.records(SCORE + name, [unit for unit in dataset.units if unit.name in done])
        if unread := sum(record["counts"].get("decode_error", 0) for record in records):
            parts.append(note("The scorer {} could not decode {} stored images.", name, count(unread)))
    first, _, *others = steps
    cards = [card(count(first.kept), first.name, f"of {count(first.before)} URLs of the plan")]
    cards += [card(count(step.kept), step.name, f"{percent(step.kept / whole)} of the URLs") for step in others]
    return Section(name="funnel", title="From URLs to samples", parts=parts, cards=cards)
