"""The metrics of zero-shot classification."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from itertools import chain

import numpy as np

from clip_eval.benchmarks.base import Metric, Outcome, lowest, proportion
from clip_eval.benchmarks.zeroshot import ZeroShotConfig
from clip_eval.errors import ClipEvalError
from clip_eval.features import Embedder, ImageFeatures
from clip_eval.intervals import bootstrap_macro
from clip_eval.labels import OTHER, UNLABELLED, ClassRow, Labels
from clip_eval.metrics import classify, confusion_matrix, per_class_recall, zero_shot_classifier

EXAMPLES = 14
_PLACE = re.compile(r"\{c?\}")  # of the class name in a template


def prompts_of(row: ClassRow, templates: Sequence[str]) -> list[str]:
    """Returns the prompts of a class: its own templates, or the given ones, with its name, which may hold braces."""
    return [_PLACE.sub(lambda _: row.name, template) for template in row.prompts or templates]


def classify_images(config: ZeroShotConfig, images: ImageFeatures, embedder: Embedder, labels: Labels) -> Outcome:
    """Returns top1, top5 (with more than 5 classes) and mean_per_class_recall.

    Raises ClipEvalError when no sample that can be read belongs to one of the classes.
    """
    given = np.asarray([labels.of_key[key] for key in images.strings["key"]], np.int64)
    kept = np.flatnonzero(given >= 0)
    if not len(kept):
        raise ClipEvalError(f"benchmark {config.name!r}: none of the samples of its classes can be read")
    truth = given[kept]
    prompts = [prompts_of(row, config.templates) for row in labels.classes]
    texts = embedder.texts(list(chain.from_iterable(prompts)), precision=config.precision, batch_size=config.batch_size)
    classifier = zero_shot_classifier(texts.features, [len(of_class) for of_class in prompts])
    result = classify(images.features[kept], classifier, truth)
    names = Counter(row.name for row in labels.classes)
    classes = [row.name if names[row.name] == 1 else f"{row.name} ({row.id})" for row in labels.classes]
    confusion = confusion_matrix(truth, result.predicted, len(classes))
    counts, correct = confusion.sum(axis=1), confusion.diagonal()
    metrics = [proportion(f"top{k}", result.rank < k, k / len(classes)) for k in (1, 5) if k == 1 or k < len(classes)]
    low, high = bootstrap_macro(correct, counts)
    metrics.append(
        Metric(
            metric="mean_per_class_recall",
            value=float(np.nanmean(per_class_recall(confusion))),
            low=low,
            high=high,
            n=len(kept),
            chance=1 / len(classes),
            interval="bootstrap",
        )
    )
    return Outcome(
        metrics=metrics,
        counts={
            "truncated": texts.truncated,
            "unlabelled": int((given == UNLABELLED).sum()),
            "other_classes": int((given == OTHER).sum()),
            "empty_classes": int((counts == 0).sum()),
            "same_prompts": len(classes) - len(np.unique(classifier, axis=0)),
        },
        details={
            "classes": classes,
            "templates": list(config.templates),
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
                for i in lowest([images.strings["uid"][i] for i in kept], EXAMPLES)
            ],
        },
    )
