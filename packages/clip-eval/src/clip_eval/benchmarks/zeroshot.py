"""Zero-shot classification: each image is classified by prompts with the class names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from clip_core.config import to_dict
from clip_eval.benchmarks import BenchmarkConfig
from clip_eval.errors import ClipEvalError

if TYPE_CHECKING:
    from clip_data.stream import Manifest
    from clip_eval.benchmarks.base import Outcome
    from clip_eval.features import Embedder, ImageFeatures
    from clip_eval.labels import Labels


@dataclass(frozen=True, kw_only=True)
class ZeroShotConfig(BenchmarkConfig):
    """Zero-shot classification."""

    label_column: str = "label"
    """Sidecar column with the true class, a string (the class's name) or an integer (its id).
    Rows without a label are left out and counted."""
    classes: tuple[str, ...] = ()
    """The class names; a name's position, from 0, is its id. Empty takes the string labels that occur, sorted.
    Rows of other classes are left out and counted."""
    classes_file: str = ""
    """Instead of classes, a file (or fsspec URL) with one class per line: .txt with its name, or .jsonl with its name
    and optionally its id and its prompts (its own templates)."""
    templates: tuple[str, ...] = ("a photo of a {}.",)
    """Prompts; {} (or {c}) is replaced by the class name."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.classes and self.classes_file:
            raise ClipEvalError(f"benchmark {self.name!r} has both classes and classes_file: give one of them")
        if not self.templates:
            raise ClipEvalError(f'benchmark {self.name!r} needs at least one template, such as "a photo of a {{}}."')
        for template in self.templates:
            if "{}" not in template and "{c}" not in template:
                raise ClipEvalError(f"benchmark {self.name!r}: template {template!r} has no {{}} for the class name")

    def read(self, manifest: Manifest) -> Labels:
        from clip_eval.labels import read_labels

        return read_labels(self, manifest)

    def protocol(self, data: Labels) -> dict[str, Any]:
        values = {**super().protocol(data), "classes": to_dict(data.classes)}
        del values["classes_file"]  # where the classes are listed does not decide the numbers
        return values

    def measure(self, images: ImageFeatures, embedder: Embedder, data: Labels) -> Outcome:
        from clip_eval.benchmarks.classification import classify_images

        return classify_images(self, images, embedder, data)
