"""What is evaluated, and what is reported on. This module does not import numpy, so that --help is fast."""

from dataclasses import dataclass

from clip_eval.benchmarks import BenchmarkConfig
from clip_eval.report import SECTIONS


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """What is evaluated, on what, and where the results go."""

    model: str = ""
    """Path or URL of a run's model.safetensors, which brings its architecture, preprocessing and tokenizer."""
    out: str = ""
    """Folder of results.jsonl, details/, features/ and config.json; belongs to one model."""
    benchmarks: tuple[BenchmarkConfig, ...] = ()
    """What the model is measured with; [[benchmarks]] in a recipe."""


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """What the report is about. A section whose input is not given or does not exist yet is left out."""

    out: str
    """The HTML file to write: a path or an fsspec URL."""
    dataset: str = ""
    """Folder (or fsspec URL) of a dataset."""
    selections: tuple[str, ...] = ()
    """Its selections, in the order of the funnel; samples are shown from the first."""
    runs: tuple[str, ...] = ()
    """Folders of training runs."""
    evaluation: str = ""
    """Folder of an evaluation."""
    interpolation: str = ""
    """Folder of `clip-train interpolate`."""
    timings: str = ""
    """JSON file (or its fsspec URL) with the seconds of each stage."""
    sections: tuple[str, ...] = tuple(SECTIONS)
    """Sections of the page, in their order: registered names, or package.module:function."""
    title: str = "From URLs to an evaluated CLIP model"
    """Heading of the page."""

    def __post_init__(self) -> None:
        for name in self.sections:
            SECTIONS.check(name)
