"""The report's section on samples: some that were kept, and some that were rejected for each reason."""

from typing import Any

from clip_data.dataset import SUCCESS, Dataset
from clip_data.select import parse_where
from clip_data.select.columns import read_catalog, read_columns
from clip_eval.report.funnel import meaning
from clip_eval.report.html import count, figure, fill, foreign, gallery, join, table
from clip_eval.report.inputs import Inputs, Section
from clip_eval.report.scan import Scan

ACCEPTED = 28
PER_REASON = 4
PER_CODE = 3


def samples(inputs: Inputs) -> Section | None:
    """Returns samples that the first selection keeps, and samples and rows that were left out."""
    found, dataset = inputs.scan, inputs.dataset
    images = inputs.images(inputs.config.dataset) if found else None
    if not (found and dataset and images):
        return None
    gone = dataset.taken_down()
    if inputs.selections:
        kept, why = found.kept(inputs.selections[0]), f" by {inputs.selections[0]}"
    else:
        kept, why = {i for i in found.stored() if found.rows["uid"][i] not in gone}, ""
    chosen = found.by_uid(kept, ACCEPTED)
    title = f"Kept{why}: {len(chosen)} of {count(len(kept))} samples, drawn by uid{found.part}"
    parts = [gallery(title, (images.card(found.rows["key"][i]) for i in chosen))]
    for name in inputs.selections:
        cards = [
            images.card(found.rows["key"][i], fill("<code>{}</code>", foreign(reason, 80)), tone="bad")
            for reason, rows in _left_out(dataset, found, name, gone).items()
            for i in found.by_uid(rows, PER_REASON)
        ]
        if cards:
            parts.append(gallery(f"Left out by {name}: up to {PER_REASON} for each reason", cards))
    if rejected := _rejected(found, gone):
        title = f"Rejected before an image was stored: up to {PER_CODE} for each code"
        parts.append(figure(title, table(("reason", "URLs, with their captions"), rejected), kind="wide"))
    return Section(name="samples", title="Samples", parts=parts)


def _left_out(dataset: Dataset, found: Scan, name: str, gone: Any) -> dict[str, list[int]]:
    """Returns the stored rows that a selection leaves out, by the first reason that holds, in its order.

    A selection with a parent is a split and not a judgement, and gives none. Samples that were taken down are left out.
    """
    description = dataset.selection(name)
    config = description["config"]
    if config["parent"]:
        return {}
    # Which of two hashes was equal is not recorded per row; often only one of them left anything out.
    hashes = [reason.removeprefix("duplicate ") for reason, n in description["counts"] if n and "duplicate " in reason]
    clauses = parse_where(config["where"], read_catalog(dataset))
    needed = {column for clause in clauses for column in clause.columns}
    kept = found.kept(name)
    left_out: dict[str, list[int]] = {}
    start = 0
    for unit in found.units:
        values = read_columns(dataset, unit, needed)
        fails = [(clause.text, ~clause.keeps(values, unit.rows)) for clause in clauses]
        for i in range(start, start + unit.rows):
            if i not in kept and found.rows["status"][i] == SUCCESS and found.rows["uid"][i] not in gone:
                texts = (text for text, is_out in fails if is_out[i - start])
                left_out.setdefault(next(texts, f"duplicate {' or '.join(hashes)}"), []).append(i)
        start += unit.rows
    return left_out


def _rejected(found: Scan, gone: Any) -> list[tuple[Any, ...]]:
    """Returns cells for rows without a stored image, a few per code."""
    by_code: dict[str, list[int]] = {}
    for i, error in enumerate(found.rows["error"]):
        if found.rows["status"][i] != SUCCESS and found.rows["uid"][i] not in gone:
            by_code.setdefault(error or "", []).append(i)
    cells = []
    for code, rows in sorted(by_code.items(), key=lambda item: (-len(item[1]), item[0])):
        examples = []
        for i in found.by_uid(rows, PER_CODE):
            url, caption = found.rows["url"][i] or "no URL", found.rows["caption"][i] or ""
            examples.append(fill("<div>{} <small>{}</small></div>", foreign(url, 110), foreign(caption, 80)))
        cells.append((fill("<code>{}</code><br><small>{}</small>", code, meaning(code)), join(examples)))
    return cells
