"""The report's sections on training: curves from the logs of runs, and the wall time of a pipeline's stages."""

from collections.abc import Mapping, Sequence
from typing import Any

from clip_eval.report.html import Html, bars, card, count, duration, figure, grid, note, percent
from clip_eval.report.inputs import Inputs, Section
from clip_eval.report.runs import Run
from clip_eval.report.svg import POINTS, Line, lines

STAGES = ("plan", "acquire", "score", "select", "train", "evaluate", "report")


def training(inputs: Inputs) -> Section | None:
    """Returns curves of each run."""
    if not inputs.runs:
        return None
    parts, several = [], len(inputs.runs) > 1
    for run in inputs.runs:
        parts += [note("Run {}", run.name)] if several else []
        parts += _run(run)
    cards = [_card(run, f"{run.name}: " if several else "") for run in inputs.runs]
    return Section(name="training", title="Training", parts=parts, cards=cards)


def _card(run: Run, name: str) -> Html:
    last, held_out = run.steps[-1], ""
    for row in run.validation[-1:]:
        after = f" after {count(row['step'])} steps" if row["step"] != last["step"] else ""
        held_out = f"held out {row['val_loss']:.3f}{after}"
    return card(f"{last['loss']:.3f}", f"{name}loss after {count(last['step'])} steps", held_out)


def _run(run: Run) -> list[Html]:
    last = run.steps[-1]
    lines_each = -(-len(run.steps) // POINTS)
    means = f" (means of up to {lines_each} log lines)" if lines_each > 1 else ""
    loss = [_curve(run.steps, "loss", "training")]
    if run.validation:
        loss.append(_curve(run.validation, "val_loss", "held out", tone="warm", dots=len(run.validation) <= 60))
    if any("chance" in row for row in run.validation):
        loss.append(_curve(run.validation, "chance", "chance, held out", tone="bad"))
    charts = [figure(f"Contrastive loss{means}", lines("Contrastive loss", loss, width=690, height=400), kind="span")]
    for name, title, tone in (
        ("lr", "Learning rate", "accent"),
        ("samples_per_s", "Throughput, samples per second", "good"),
        ("loader_wait_s", "Wait for the loader, seconds per step", "bad"),
        ("grad_norm", "Gradient norm before clipping", "accent"),
        ("logit_scale", "Logit scale", "accent"),
    ):
        if sum(name in row for row in run.steps) > 1:
            charts.append(figure(title + means, lines(title, [_curve(run.steps, name, title, tone=tone)])))
    for name, title in (
        ("image_to_text_recall@1", "Held out: recall at 1, captions for an image"),
        ("text_to_image_recall@1", "Held out: recall at 1, images for a caption"),
    ):
        if sum(name in row for row in run.validation) > 1:
            charts.append(figure(title, lines(title, [_curve(run.validation, name, title, tone="good")])))
    model = (run.config.get("model") or {}).get("name", "")
    said = [f"{model}: " if model else "", f"{count(last['step'])} steps"]
    if "samples" in last:
        said.append(f", {count(last['samples'])} samples seen ({last.get('epoch', 0):.3g} epochs)")
    if "time_s" in last:
        said.append(f", {duration(last['time_s'])}")
    if not run.done:
        said.append("; the run is not finished")
    return [note("{}.", "".join(said)), grid(charts)]


def _curve(rows: Sequence[Mapping[str, Any]], name: str, title: str, tone: str = "accent", dots: bool = False) -> Line:
    points = [(row["step"], row[name]) for row in rows if isinstance(row.get(name), int | float)]
    return Line(name=title, x=[x for x, _ in points], y=[y for _, y in points], tone=tone, dots=dots)


def time(inputs: Inputs) -> Section | None:
    """Returns the wall time of each stage: those of the pipeline in its order, then the others."""
    seconds = inputs.seconds
    if seconds is None:
        return None
    total = sum(seconds.values()) or 1
    order = sorted(seconds, key=lambda name: STAGES.index(name) if name in STAGES else len(STAGES))
    rows = [(name, seconds[name], f"{duration(seconds[name])} · {percent(seconds[name] / total, 0)}") for name in order]
    remarks = [note("{} in all.", duration(total))]
    for run in inputs.runs:
        wait, elapsed = (run.steps[-1].get(name) for name in ("wait_s", "time_s"))
        if wait is not None and elapsed:
            name = f"in {run.name} " if len(inputs.runs) > 1 else ""
            share = percent(wait / elapsed)
            remarks.append(note("Training {}waited {} for the loader: {} of its time.", name, duration(wait), share))
    return Section(name="time", title="Where the time goes", parts=[bars(rows), *remarks])
