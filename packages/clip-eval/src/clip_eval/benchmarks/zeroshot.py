"""Zero-shot classification: each image is classified by prompts with the class names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import nsmallest
from itertools import chain
from typing import TYPE_CHECKING, Any

from clip_core.config import to_dict
from clip_eval.benchmarks import BenchmarkConfig, Outcome
from clip_eval.errors import ClipEvalError

if TYPE_CHECKING:
    from clip_data.stream import Manifest
    from clip_eval.features import Embedder, ImageFeatures
    from clip_eval.labels import ClassRow, Labels

EXAMPLES = 14
_PLACE = re.compile(r"\{c?\}")  # of the class name in a template


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
        """Returns top1, top5 (with more than 5 classes) and mean_per_class_recall.

        Raises ClipEvalError when no sample that can be read belongs to one of the classes.
        """
        import numpy as np

        from clip_eval.labels import OTHER, UNLABELLED
        from clip_eval.metrics import classify, confusion_matrix, macro_recall, proportion, zero_shot_classifier

        given = np.asarray([data.of_key[key] for key in images.strings["key"]], np.int64)
        kept = np.flatnonzero(given >= 0)
        if not len(kept):
            raise ClipEvalError(f"benchmark {self.name!r}: none of the samples of its classes can be read")
        truth, uids = given[kept], [images.strings["uid"][i] for i in kept]
        prompts = [prompts_of(row, self.templates) for row in data.classes]
        texts = embedder.texts(list(chain.from_iterable(prompts)), precision=self.precision, batch_size=self.batch_size)
        classifier = zero_shot_classifier(texts.features, [len(of_class) for of_class in prompts])
        result = classify(images.features[kept], classifier, truth)
        names = Counter(row.name for row in data.classes)
        classes = [row.name if names[row.name] == 1 else f"{row.name} ({row.id})" for row in data.classes]
        confusion = confusion_matrix(truth, result.predicted, len(classes))
        counts, correct = confusion.sum(axis=1), confusion.diagonal()
        tops = [k for k in (1, 5) if k == 1 or k < len(classes)]
        return Outcome(
            metrics=[
                *(proportion(f"top{k}", result.rank < k, k / len(classes)) for k in tops),
                macro_recall(confusion),
            ],
            counts={
                "truncated": texts.truncated,
                "unlabelled": int((given == UNLABELLED).sum()),
                "other_classes": int((given == OTHER).sum()),
                "empty_classes": int((counts == 0).sum()),
                "same_prompts": len(classes) - len(np.unique(classifier, axis=0)),
            },
            details={
                "classes": classes,
                "templates": list(self.templates),
                "counts": counts.tolist(),
                "correct": correct.tolist(),
                "confusion": [[i, j, int(confusion[i, j])] for i, j in np.argwhere(confusion).tolist()],
                "examples": [
                    {
                        "key": images.strings["key"][kept[i]],
                        "label": classes[truth[i]],
                        "predicted": classes[result.predicted[i]],
                        "rank": int(result.rank[i]),
                    }
                    for i in nsmallest(EXAMPLES, range(len(uids)), uids.__getitem__)
                ],
            },
        )


def prompts_of(row: ClassRow, templates: Sequence[str]) -> list[str]:
    """Returns the prompts of a class: its own templates, or the given ones, with its name, which may hold braces."""
    return [_PLACE.sub(lambda _: row.name, template) for template in row.prompts or templates]
