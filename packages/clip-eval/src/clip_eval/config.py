"""What is evaluated, and what is reported on; free of numpy, so that --help is quick."""

from dataclasses import dataclass
from typing import Literal

from clip_eval.errors import ClipEvalError


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """One benchmark: a selection of a dataset, and what is measured on it."""

    name: str
    """Names the task in the results; unique."""
    kind: Literal["zeroshot", "retrieval"] = "zeroshot"
    """zeroshot: classify each image by prompts. retrieval: rank captions for images and images for captions."""
    root: str = ""
    """Folder (or fsspec URL) of the dataset."""
    selection: str = ""
    """Name of a selection of the dataset; "" takes every successful sample."""
    label_column: str = "label"
    """zeroshot: sidecar column with the true class, a string (the class's name) or an integer (its id).
    Rows without a label are left out and counted."""
    classes: tuple[str, ...] = ()
    """zeroshot: the class names; a name's position, from 0, is its id. Empty takes the string labels that occur,
    sorted. Rows of other classes are left out and counted."""
    classes_file: str = ""
    """zeroshot: instead of classes, a file (or fsspec URL) with a class a line: .txt with its name, or .jsonl with its
    name and, where wanted, its id and its prompts (templates of its own)."""
    templates: tuple[str, ...] = ("a photo of a {}.",)
    """zeroshot: prompts; {} (or {c}) is replaced by the class name."""
    max_corrupt: float = 0.05
    """Largest share of samples that cannot be read; above it the evaluation stops."""
    overlap: Literal["error", "allow"] = "error"
    """Samples that the model was trained on (the same uid) are an error, or allowed."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the towers; scores are exact either way."""
    batch_size: int = 256
    """Images or texts per forward pass."""

    def __post_init__(self) -> None:
        if not self.name or "/" in self.name:
            raise ClipEvalError(f"the task name {self.name!r} must be a word without '/': it names a file")
        if not self.root:
            raise ClipEvalError(f"task {self.name!r} has no dataset: set its root")
        if self.batch_size < 1:
            raise ClipEvalError(f"task {self.name!r}: batch_size {self.batch_size} must be at least 1")
        if not 0 <= self.max_corrupt <= 1:
            raise ClipEvalError(f"task {self.name!r}: max_corrupt {self.max_corrupt} must be between 0 and 1")
        if self.classes and self.classes_file:
            raise ClipEvalError(f"task {self.name!r} has both classes and classes_file: give one of them")
        if self.kind == "zeroshot":
            self._check_prompts()
        elif self.classes or self.classes_file:
            raise ClipEvalError(f"task {self.name!r} is a retrieval, which has no classes: leave them out")

    def _check_prompts(self) -> None:
        if not self.templates:
            raise ClipEvalError(f'task {self.name!r} needs at least one template, such as "a photo of a {{}}."')
        for template in self.templates:
            if "{}" not in template and "{c}" not in template:
                raise ClipEvalError(f"task {self.name!r}: the template {template!r} has no {{}} for the class name")


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """What is evaluated, on what, and where the results go."""

    model: str = ""
    """The model.safetensors of a training run; it brings its architecture, preprocessing and tokenizer."""
    out: str = ""
    """Folder of results.jsonl, details/, features/ and config.json; belongs to one model."""
    tasks: tuple[TaskConfig, ...] = ()
    """The benchmarks; [[tasks]] in a recipe."""


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """What the report is about; whatever is not given or not there yet leaves its section out."""

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
    timings: str = ""
    """JSON file (or its fsspec URL) with the seconds of each stage."""
    title: str = "From URLs to an evaluated CLIP model"
    """Heading of the page."""
