"""Puts the report together: one self-contained HTML file, from whatever is there."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.resources import files

from clip_core import ClipError
from clip_core.store import Store
from clip_data.dataset import Dataset, is_dataset
from clip_eval.config import ReportConfig
from clip_eval.errors import ClipEvalError
from clip_eval.report.evaluation import evaluation_section, metric_name
from clip_eval.report.funnel import Stage, funnel_section, read_funnel
from clip_eval.report.html import Html, count, escape, fill, foreign, join, note, percent
from clip_eval.report.images import Images
from clip_eval.report.samples import histograms_section, samples_section, scan
from clip_eval.report.training import Run, read_run, time_section, training_section
from clip_eval.results import Row, file_in_store, read_results

HEADLINES = ("top1", "image_to_text_recall@1", "text_to_image_recall@1")


def write_report(config: ReportConfig) -> str:
    """Writes the page, at once and whole, and returns its path.

    What was named and is not there is listed at the foot of the page. Raises ClipEvalError when nothing is there, and
    ClipDataError when something is there and damaged.
    """
    target, name = file_in_store(config.out)
    absent: list[str] = []
    sections: list[Html] = []
    cards: list[Html] = []
    runs = _runs(config, absent)
    if dataset := _dataset(config, absent):
        stages = read_funnel(dataset, config.selections)
        found, images = scan(dataset), Images(dataset)
        cards += _funnel_cards(stages)
        sections.append(funnel_section(dataset, stages))
        if found.units:
            sections.append(histograms_section(found))
            sections.append(samples_section(dataset, found, config.selections, images))
        absent += [f"selection {name}" for name in config.selections if name not in dataset.selections()]
    if runs:
        cards += [_run_card(run, f"{run.name}: " if len(runs) > 1 else "") for run in runs]
        sections.append(training_section(runs))
    if config.timings:
        if (seconds := _timings(config.timings)) is not None:
            sections.append(time_section(seconds, runs))
        else:
            absent.append(f"timings {config.timings}")
    if config.evaluation:
        store = Store(config.evaluation)
        if rows := read_results(store):
            cards += _score_cards(rows)
            sections.append(evaluation_section(rows, store, cache(_images_of)))
        else:
            absent.append(f"evaluation {config.evaluation}")
    if not sections:
        raise ClipEvalError(
            f"there is nothing to report on ({', '.join(absent) or 'no input named'}): "
            "give --dataset, --runs or --evaluation"
        )
    page = _page(config.title, cards, sections, absent)
    target.write_bytes(name, page.encode("utf-8", "replace"))
    return config.out


def _timings(file: str) -> dict[str, float] | None:
    store, name = file_in_store(file)
    if not store.exists(name):
        return None
    try:
        return {str(stage): float(seconds) for stage, seconds in store.read_json(name).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise ClipEvalError(f"{file} is no JSON object of stages and their seconds: {error}") from error


def _runs(config: ReportConfig, absent: list[str]) -> list[Run]:
    runs = []
    for folder in config.runs:
        run = read_run(folder)
        if run is None:
            absent.append(f"training run {folder}")
        else:
            runs.append(run)
    return runs


def _dataset(config: ReportConfig, absent: list[str]) -> Dataset | None:
    if not config.dataset:
        return None
    if is_dataset(Store(config.dataset)):
        return Dataset.open(config.dataset)
    absent.append(f"dataset {config.dataset}")
    return None


def _images_of(root: str) -> Images | None:
    try:
        return Images(Dataset.open(root))
    except ClipError:
        return None  # results outlive their data; the section says so


def _card(value: str, name: str, below: str = "") -> Html:
    return fill('<div class="figure"><b>{}</b><span>{}</span><small>{}</small></div>', value, name, below)


def _funnel_cards(stages: Sequence[Stage]) -> list[Html]:
    whole = stages[0].before or 1
    return [
        _card(
            count(stage.kept),
            stage.name,
            f"of {count(stages[0].before)} URLs of the plan"
            if i == 0
            else f"{percent(stage.kept / whole)} of the URLs",
        )
        for i, stage in enumerate(stages)
        if i != 1
    ]


def _run_card(run: Run, name: str) -> Html:
    last, held_out = run.steps[-1], ""
    if run.validation:
        at = run.validation[-1]["step"]
        held_out = f"held out {run.validation[-1]['val_loss']:.3f}"
        held_out += f" after {count(at)} steps" if at != last["step"] else ""
    return _card(f"{last['loss']:.3f}", f"{name}loss after {count(last['step'])} steps", held_out)


def _score_cards(rows: Sequence[Row]) -> list[Html]:
    return [
        _card(
            percent(row["value"]),
            f"{row['benchmark']}: {metric_name(row['metric'])}",
            f"chance {percent(row['chance'])}",
        )
        for row in rows
        if row["metric"] in HEADLINES
    ]


def _page(title: str, cards: Sequence[Html], sections: Sequence[Html], absent: Sequence[str]) -> str:
    names = {
        "funnel": "Funnel",
        "columns": "Columns",
        "samples": "Samples",
        "training": "Training",
        "time": "Time",
        "evaluation": "Evaluation",
    }
    links = join(
        fill('<a href="#{}">{}</a>', name, text)
        for name, text in names.items()
        if any(part.startswith(f'<section id="{name}"') for part in sections)
    )
    foot = note("Not there yet, and left out: {}.", join(map(foreign, absent), ", ")) if absent else ""
    return fill(
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">"
        "<title>{title}</title><style>{style}</style></head><body><main>"
        '<header><h1>{title}</h1><div class="summary">{cards}</div><nav>{links}</nav></header>'
        "{sections}<footer>{foot}</footer></main></body></html>\n",
        title=escape(title),
        style=Html((files("clip_eval.report") / "style.css").read_text(encoding="utf-8")),
        cards=join(cards),
        links=links,
        sections=join(sections),
        foot=foot,
    )
