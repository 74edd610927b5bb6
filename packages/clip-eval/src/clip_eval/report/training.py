"""The report's training section: curves from a run's log."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clip_core.store import Store
from clip_eval.errors import ClipEvalError
from clip_eval.report.html import Html, bars, count, duration, figure, fill, grid, note, percent, section
from clip_eval.report.svg import POINTS, Line, lines

STAGES = ("plan", "acquire", "score", "select", "train", "evaluate", "report")


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a training run has left behind."""

    name: str
    """Its folder."""
    steps: list[dict[str, Any]]
    """The log's lines with a loss, one per step, ascending."""
    validation: list[dict[str, Any]]
    """The log's lines with a held-out loss, one per step, ascending."""
    config: dict[str, Any]
    """config.json, or empty."""
    done: dict[str, Any]
    """done.json, or empty while the run goes on."""


def read_run(folder: str) -> Run | None:
    """The run in a folder; None when it has no log yet. A last line that a kill has cut off is ignored."""
    store = Store(folder)
    if not store.exists("log.jsonl"):
        return None
    steps: dict[int, dict[str, Any]] = {}
    validation: dict[int, dict[str, Any]] = {}
    text = store.read_bytes("log.jsonl")
    for line in text[: text.rfind(b"\n") + 1].splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ClipEvalError(
                f"{folder}/log.jsonl is damaged: not a line of JSON ({error}): {line[:80]!r}"
            ) from error
        if "val_loss" in row:  # a step that was repeated after a resume is the later line's
            validation[row["step"]] = row
        elif "loss" in row and "event" not in row:
            steps[row["step"]] = row
    if not steps:
        return None
    return Run(
        name=folder,
        steps=[steps[step] for step in sorted(steps)],
        validation=[validation[step] for step in sorted(validation)],
        config=store.read_json("config.json") if store.exists("config.json") else {},
        done=store.read_json("done.json") if store.exists("done.json") else {},
    )


def training_section(runs: Sequence[Run]) -> Html:
    parts: list[Html] = []
    for run in runs:
        if len(runs) > 1:
            parts.append(note("Run {}", run.name))
        parts += _run(run)
    return section("training", "Training", *parts)


def _run(run: Run) -> list[Html]:
    last = run.steps[-1]
    lines_each = -(-len(run.steps) // POINTS)
    means = f" (means of up to {lines_each} log lines)" if lines_each > 1 else ""
    loss = [_curve(run.steps, "loss", "training")]
    if run.validation:
        loss.append(_curve(run.validation, "val_loss", "held out", tone="warm", dots=len(run.validation) <= 60))
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


def time_section(seconds: Mapping[str, float], runs: Sequence[Run]) -> Html:
    """Wall time per stage, in the order of the pipeline and stages of other names after it."""
    total = sum(seconds.values()) or 1
    order = [*(name for name in STAGES if name in seconds), *(name for name in seconds if name not in STAGES)]
    rows = [(name, seconds[name], f"{duration(seconds[name])} · {percent(seconds[name] / total, 0)}") for name in order]
    remarks = [note("{} in all.", duration(total))]
    for run in runs:
        wait, elapsed = (run.steps[-1].get(name) for name in ("wait_s", "time_s"))
        if wait is not None and elapsed:
            said = fill("Training {}waited", fill("in {} ", run.name) if len(runs) > 1 else "")
            remarks.append(note("{} {} for the loader: {} of its time.", said, duration(wait), percent(wait / elapsed)))
    return section("time", "Where the time goes", bars(rows), *remarks)
