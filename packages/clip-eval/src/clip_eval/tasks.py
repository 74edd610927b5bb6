"""Zero-shot classification and retrieval: a task's metrics and what the report shows of it."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np

from clip_eval.config import TaskConfig
from clip_eval.errors import ClipEvalError
from clip_eval.features import Embedder, ImageFeatures
from clip_eval.intervals import bootstrap_macro, wilson
from clip_eval.labels import OTHER, UNLABELLED, ClassRow, Labels
from clip_eval.metrics import (
    Retrieval,
    classify,
    confusion_matrix,
    per_class_recall,
    rank_candidates,
    recall_chance,
    zero_shot_classifier,
)

RECALL_AT = (1, 5, 10)
EXAMPLES = 8
CLASSIFIED = 14
_PLACE = re.compile(r"\{c?\}")  # of the class name in a template


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One number of a task, with what is needed to judge it."""

    metric: str
    """Name."""
    value: float
    """Between 0 and 1."""
    low: float
    """Lower end of the 95 % interval."""
    high: float
    """Upper end of the 95 % interval."""
    n: int
    """Samples, or queries."""
    chance: float
    """Expected value of a random ranking."""
    interval: str
    """wilson or bootstrap."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """All that a task has to say."""

    metrics: list[Metric]
    """In the order of the table."""
    counts: dict[str, int]
    """What was left out, cut or is missing."""
    details: dict[str, Any] = field(default_factory=dict)
    """JSON for the report."""


def proportion(name: str, hits: np.ndarray, chance: float) -> Metric:
    """The share of true values in bool [N], with Wilson's interval."""
    low, high = wilson(int(hits.sum()), len(hits))
    return Metric(
        metric=name, value=float(hits.mean()), low=low, high=high, n=len(hits), chance=chance, interval="wilson"
    )


def prompts_of(row: ClassRow, templates: Sequence[str]) -> list[str]:
    """The prompts of a class: its own templates, or the given ones, with its name, which may hold braces itself."""
    return [_PLACE.sub(lambda _: row.name, template) for template in row.prompts or templates]


def zero_shot(task: TaskConfig, images: ImageFeatures, embedder: Embedder, labels: Labels) -> Outcome:
    """top1, top5 (with more than 5 classes) and mean_per_class_recall.

    Raises ClipEvalError when no sample that can be read belongs to one of the classes.
    """
    given = np.asarray([labels.of_key[key] for key in images.strings["key"]], np.int64)
    kept = np.flatnonzero(given >= 0)
    if not len(kept):
        raise ClipEvalError(f"task {task.name!r}: none of the samples of its classes can be read")
    truth = given[kept]
    prompts = [prompts_of(row, task.templates) for row in labels.classes]
    texts = embedder.texts(list(chain.from_iterable(prompts)), precision=task.precision, batch_size=task.batch_size)
    classifier = zero_shot_classifier(texts.features, [len(of_class) for of_class in prompts])
    result = classify(images.features[kept], classifier, truth)
    names = Counter(row.name for row in labels.classes)
    classes = [row.name if names[row.name] == 1 else f"{row.name} ({row.id})" for row in labels.classes]
    confusion = confusion_matrix(truth, result.predicted, len(classes))
    recall, counts = per_class_recall(confusion), confusion.sum(axis=1)
    metrics = [proportion("top1", result.rank < 1, 1 / len(classes))]
    if len(classes) > 5:
        metrics.append(proportion("top5", result.rank < 5, 5 / len(classes)))
    low, high = bootstrap_macro(confusion.diagonal(), counts)
    metrics.append(
        Metric(
            metric="mean_per_class_recall",
            value=float(np.nanmean(recall)),
            low=low,
            high=high,
            n=len(kept),
            chance=1 / len(classes),
            interval="bootstrap",
        )
    )
    examples = [
        {
            "key": images.strings["key"][kept[i]],
            "label": classes[truth[i]],
            "predicted": classes[result.predicted[i]],
            "rank": int(result.rank[i]),
        }
        for i in _by_uid([images.strings["uid"][i] for i in kept], CLASSIFIED)
    ]
    return Outcome(
        metrics=metrics,
        counts={
            "truncated": texts.truncated,
            "corrupt": images.corrupt,
            "unlabelled": int((given == UNLABELLED).sum()),
            "other_classes": int((given == OTHER).sum()),
            "empty_classes": int((counts == 0).sum()),
            "same_prompts": len(classes) - len(np.unique(classifier, axis=0)),
        },
        details={
            "classes": classes,
            "templates": list(task.templates),
            "counts": counts.tolist(),
            "correct": confusion.diagonal().tolist(),
            "confusion": [
                [int(row), int(column), int(confusion[row, column])] for row, column in np.argwhere(confusion)
            ],
            "examples": examples,
        },
    )


def retrieval(task: TaskConfig, images: ImageFeatures, embedder: Embedder) -> Outcome:
    """image_to_text_recall@k and text_to_image_recall@k for k = 1, 5, 10.

    What belongs together is decided by identity, not by row: rows whose pictures have the same bytes (SHA-256) are one
    image, rows with the same caption are one text, and an image and a text are a positive pair when any row holds
    both. So every distinct image and every distinct text is one query and one candidate. Rows without a caption are
    left out. Raises ClipEvalError when no row is left.
    """
    strings = images.strings
    kept = np.asarray([i for i, caption in enumerate(strings["caption"]) if caption.strip()], np.int64)
    if not len(kept):
        raise ClipEvalError(f"task {task.name!r}: none of its {len(strings['caption'])} samples has a caption")
    identities = [strings["sha256"][i] or strings["uid"][i] for i in kept]
    image_names, image_row, image_of_row = np.unique(identities, return_index=True, return_inverse=True)
    captions, text_of_row = np.unique(np.asarray(strings["caption"], dtype=object)[kept], return_inverse=True)
    texts = embedder.texts(captions.tolist(), precision=task.precision, batch_size=task.batch_size)
    pairs = np.unique(np.stack([image_of_row, text_of_row]), axis=1).astype(np.int64)
    image_row = kept[image_row]
    features = images.features[image_row]
    to_text = rank_candidates(features, texts.features, (pairs[0], pairs[1]))
    to_image = rank_candidates(texts.features, features, (pairs[1], pairs[0]))
    keys = [strings["key"][row] for row in image_row]
    return Outcome(
        metrics=[
            proportion(f"{name}_recall@{k}", found.rank < k, recall_chance(found.positives, candidates, k))
            for name, found, candidates in (
                ("image_to_text", to_text, len(captions)),
                ("text_to_image", to_image, len(image_names)),
            )
            for k in RECALL_AT
        ],
        counts={
            "truncated": texts.truncated,
            "corrupt": images.corrupt,
            "uncaptioned": len(strings["caption"]) - len(kept),
            "rows": len(text_of_row),
            "images": len(image_names),
            "texts": len(captions),
        },
        details={
            "image_to_text": _examples(to_text, list(image_names), keys, captions.tolist(), pairs),
            "text_to_image": _examples(to_image, captions.tolist(), captions.tolist(), keys, pairs[::-1]),
        },
    )


def _examples(
    found: Retrieval, order: list[str], queries: list[str], candidates: list[str], pairs: np.ndarray
) -> list[dict[str, Any]]:
    """Queries with their best candidates; chosen by hash of their name, never by how well they went."""
    hashed = [hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest() for name in order]
    examples = []
    for query in _by_uid(hashed, EXAMPLES):
        positives = set(pairs[1][pairs[0] == query].tolist())
        examples.append(
            {
                "query": queries[query],
                "rank": int(found.rank[query]),
                "best": candidates[found.best[query]],
                "top": [{"candidate": candidates[i], "positive": i in positives} for i in found.top[query].tolist()],
            }
        )
    return examples


def _by_uid(uids: list[str], count: int) -> list[int]:
    """Indices of the `count` smallest uids: an arbitrary sample that is the same in every run."""
    return sorted(range(len(uids)), key=uids.__getitem__)[:count]
