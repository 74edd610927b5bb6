"""The report's section on columns: histograms of a dataset."""

import numpy as np

from clip_eval.report.html import count, figure, grid, note
from clip_eval.report.inputs import Inputs, Section
from clip_eval.report.svg import histogram

BINS = 30


def columns(inputs: Inputs) -> Section | None:
    """Returns histograms of the stored samples' sizes, words and scores."""
    found = inputs.scan
    if not found:
        return None
    stored = found.stored()
    values = {
        name: np.asarray([found.rows[name][i] for i in stored if found.rows[name][i] is not None], float)
        for name in ("width", "height")
    }
    if not any(name.endswith(": words") for name in found.scores):
        values["words"] = np.asarray([len((found.rows["caption"][i] or "").split()) for i in stored], float)
    charts = []
    for name, column in (values | found.scores).items():
        finite = column[np.isfinite(column)]
        if len(finite):
            edges, counts = _bins(finite)
            some = f" ({count(len(finite))} samples with a value)" if len(finite) < len(stored) else ""
            charts.append(figure(name + some, histogram(name, edges, counts, open_end=finite.max() > edges[-1])))
    remark = note("{} stored samples{}.", count(len(stored)), found.part)
    return Section(name="columns", title="What the samples are like", parts=[remark, grid(charts)])


def _bins(values: np.ndarray) -> tuple[list[float], list[int]]:
    """Returns edges up to the 99.5th percentile and counts; the last count includes all values above.

    A column of few different integers has one bin for each integer.
    """
    low, high = float(values.min()), float(np.quantile(values, 0.995))
    if (values == np.rint(values)).all() and high - low < BINS:
        edges = np.arange(low - 0.5, high + 1.5)
    else:
        edges = np.linspace(low, high if high > low else low + 1, BINS + 1)
    counts = np.histogram(np.minimum(values, edges[-1]), edges)[0]
    return edges.tolist(), counts.tolist()
