"""Zero-shot and retrieval metrics over features.

Ties have a stated rule. Of classes with equal scores the one with the lower index ranks first, which is argmax: of two
classes with the same prompts the first is predicted. In retrieval ties count against the model: a true answer ranks
behind every wrong candidate with the same score. Scores are exact (scores.py), so no batch size or tiling moves a tie.

Definitions follow clip_benchmark: the zero-shot classifier is the renormalised mean of normalised prompt features, a
class's recall is averaged over the classes that have samples, and a retrieval query is a hit at k when at least one
of its positives is among the k best.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clip_eval.benchmarks import Metric
from clip_eval.intervals import bootstrap_macro, wilson
from clip_eval.scores import normalize, score_tiles


def proportion(name: str, hits: np.ndarray, chance: float) -> Metric:
    """Returns the share of true values in bool [N], with Wilson's interval."""
    n, value = len(hits), float(hits.mean())
    low, high = wilson(int(hits.sum()), n)
    return Metric(metric=name, value=value, low=low, high=high, n=n, chance=chance, interval="wilson")


def macro_recall(confusion: np.ndarray) -> Metric:
    """Returns the mean of the recalls of the classes that have samples, with a bootstrap interval."""
    name, value = "mean_per_class_recall", float(np.nanmean(per_class_recall(confusion)))
    n, chance = int(confusion.sum()), 1 / len(confusion)
    low, high = bootstrap_macro(confusion.diagonal(), confusion.sum(axis=1))
    return Metric(metric=name, value=value, low=low, high=high, n=n, chance=chance, interval="bootstrap")


def zero_shot_classifier(text_features: np.ndarray, prompts: Sequence[int]) -> np.ndarray:
    """Returns one unit vector per class, float32 [C, D], from the features [P, D] of all prompts.

    `prompts` is the number of prompts of each class, which are adjacent.
    """
    unit = normalize(text_features).astype(np.float64)
    starts = np.cumsum([0, *prompts[:-1]])
    return normalize(np.add.reduceat(unit, starts, axis=0) / np.asarray(prompts)[:, None])


@dataclass(frozen=True, kw_only=True)
class Classification:
    """Per-sample outcome of zero-shot classification."""

    rank: np.ndarray
    """int64 [N]: classes ahead of the true one, by score and then by index; 0 is a correct prediction."""
    predicted: np.ndarray
    """int64 [N]: the class with the highest score; the first of them in a tie."""


def classify(image_features: np.ndarray, classifier: np.ndarray, labels: np.ndarray) -> Classification:
    """Ranks the classes of unit vectors [C, D] for images [N, D] with true classes `labels`, int64 [N]."""
    rank, predicted = np.empty(len(labels), np.int64), np.empty(len(labels), np.int64)
    for rows, scores in score_tiles(image_features, classifier):
        label = labels[rows, None]
        true = np.take_along_axis(scores, label, axis=1)
        earlier = np.arange(scores.shape[1]) < label
        rank[rows] = ((scores > true) | ((scores == true) & earlier)).sum(axis=1)
        predicted[rows] = scores.argmax(axis=1)
    return Classification(rank=rank, predicted=predicted)


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Returns int64 [C, C]: samples of the row's class that were taken for the column's."""
    return np.bincount(labels * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def per_class_recall(confusion: np.ndarray) -> np.ndarray:
    """Returns float64 [C], the share of a class's samples that were recognised; NaN for a class without a sample."""
    counts = confusion.sum(axis=1)
    recall: np.ndarray = np.divide(confusion.diagonal(), counts, out=np.full(len(counts), np.nan), where=counts > 0)
    return recall


@dataclass(frozen=True, kw_only=True)
class Retrieval:
    """Per-query outcome of a ranking."""

    rank: np.ndarray
    """int64 [Q]: negatives that score as high as the best positive or higher; a hit at k has rank < k."""
    positives: np.ndarray
    """int64 [Q]: positives of the query."""
    best: np.ndarray
    """int64 [Q]: the positive with the highest score; the first of them in a tie."""
    top: np.ndarray
    """int64 [Q, K]: the best candidates, highest score first, equal scores by index."""


def rank_candidates(
    queries: np.ndarray, candidates: np.ndarray, pairs: tuple[np.ndarray, np.ndarray], keep: int = 5
) -> Retrieval:
    """Ranks all candidates [C, D] for every query [Q, D] (unit vectors).

    `pairs` = (query index, candidate index), int64 [P] each: what belongs together. Every query needs at least one.
    """
    order = np.lexsort((pairs[1], pairs[0]))
    pair_query, pair_candidate = pairs[0][order], pairs[1][order]
    positives = np.bincount(pair_query, minlength=len(queries))
    assert positives.min() > 0
    bounds = np.concatenate([[0], np.cumsum(positives)])
    rank, best = np.empty(len(queries), np.int64), np.empty(len(queries), np.int64)
    keep = min(keep, len(candidates))
    top = np.empty((len(queries), keep), np.int64)
    for rows, scores in score_tiles(queries, candidates):
        chosen = slice(bounds[rows.start], bounds[rows.stop])
        local = pair_query[chosen] - rows.start
        true = np.full_like(scores, -np.inf)
        true[local, pair_candidate[chosen]] = scores[local, pair_candidate[chosen]]
        best[rows] = true.argmax(axis=1)
        top[rows] = _top(scores, keep)
        scores[local, pair_candidate[chosen]] = -np.inf
        rank[rows] = (scores >= true.max(axis=1, keepdims=True)).sum(axis=1)
    return Retrieval(rank=rank, positives=positives, best=best, top=top)


def _top(scores: np.ndarray, keep: int) -> np.ndarray:
    """Returns the indices [N, keep] of the highest scores of each row, equal scores by index."""
    kth = np.partition(scores, scores.shape[1] - keep, axis=1)[:, -keep]
    top = np.empty((len(scores), keep), np.int64)
    for row, bound in enumerate(kth):
        candidates = np.flatnonzero(scores[row] >= bound)
        top[row] = candidates[np.argsort(-scores[row, candidates], kind="stable")[:keep]]
    return top


def recall_chance(positives: np.ndarray, candidates: int, k: int) -> float:
    """Returns the expected recall at k under a random ranking: the mean of 1 - C(N - m, k) / C(N, k), m positives of N.

    Exact up to float rounding; computed once per distinct m.
    """
    counts = np.bincount(positives)
    k = min(k, candidates)
    hits = (int(n) * (1 - math.comb(candidates - m, k) / math.comb(candidates, k)) for m, n in enumerate(counts) if n)
    return sum(hits) / int(counts.sum())
