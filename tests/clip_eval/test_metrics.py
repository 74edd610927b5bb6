import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_eval import scores
from clip_eval.metrics import (
    classify,
    confusion_matrix,
    per_class_recall,
    rank_candidates,
    recall_chance,
    zero_shot_classifier,
)
from clip_eval.scores import normalize


def vectors(count: int, width: int, seed: int) -> np.ndarray:
    return normalize(np.random.default_rng(seed).normal(size=(count, width)))


def random_pairs(images: int, texts: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Every image and every text is in at least one pair; no pair twice."""
    rng = np.random.default_rng(seed)
    extra = rng.integers([images, texts], size=(texts, 2))
    both = [(i % images, i % texts) for i in range(max(images, texts))]
    pairs = np.unique(np.concatenate([both, extra]), axis=0)
    return pairs[:, 0], pairs[:, 1]


def test_classifier_is_the_renormalised_mean_of_normalised_prompts():
    prompts = np.array([[2.0, 0, 0], [0, 5.0, 0], [0, 0, 1.0], [0, 0, 3.0]])
    expected = [[math.sqrt(0.5), math.sqrt(0.5), 0], [0, 0, 1]]
    np.testing.assert_allclose(zero_shot_classifier(prompts, [2, 2]), expected, atol=1e-7)
    np.testing.assert_allclose(zero_shot_classifier(prompts[:3], [2, 1]), expected, atol=1e-7)


def test_classify_ranks_the_true_class():
    classifier = np.eye(3, dtype=np.float32)
    images = normalize(np.array([[3, 2, 1], [3, 2, 1], [3, 2, 1], [1, 2, 9]]))
    result = classify(images, classifier, np.array([0, 1, 2, 2]))
    assert result.rank.tolist() == [0, 1, 2, 0]
    assert result.predicted.tolist() == [0, 0, 0, 2]
    confusion = confusion_matrix(np.array([0, 1, 2, 2]), result.predicted, 3)
    assert confusion.tolist() == [[1, 0, 0], [1, 0, 0], [1, 0, 1]]
    assert per_class_recall(confusion).tolist() == [1.0, 0.0, 0.5]


def test_a_class_without_samples_has_no_recall():
    recall = per_class_recall(confusion_matrix(np.array([0, 0]), np.array([0, 1]), 2))
    assert recall[0] == 0.5
    assert np.isnan(recall[1])


def test_of_classes_with_the_same_score_the_first_is_predicted():
    classifier = np.array([[0, 1], [1, 0], [1, 0], [0.6, 0.8]], np.float32)
    result = classify(np.repeat(classifier[1:2], 4, axis=0), classifier, np.arange(4))
    assert result.rank.tolist() == [3, 0, 1, 2]
    assert result.predicted.tolist() == [1] * 4
    collapsed = np.repeat(vectors(1, 8, 0), 6, axis=0)
    assert classify(collapsed, collapsed, np.arange(6)).rank.tolist() == list(range(6))


def test_ties_count_against_the_model_in_retrieval():
    collapsed = np.repeat(vectors(1, 8, 0), 6, axis=0)
    labels = np.arange(6)
    found = rank_candidates(collapsed, collapsed, (labels, labels))
    assert found.rank.tolist() == [5] * 6


def test_a_tie_between_two_positives_is_a_hit():
    candidates = np.array([[1, 0], [1, 0], [0, 1]], np.float32)
    found = rank_candidates(candidates[:1], candidates, (np.array([0, 0]), np.array([0, 1])))
    assert found.rank.tolist() == [0]
    assert found.positives.tolist() == [2]
    assert found.best.tolist() == [0]
    assert found.top.tolist() == [[0, 1, 2]]


def test_retrieval_against_sorting_every_query():
    images, texts = vectors(23, 16, 1), vectors(41, 16, 2)
    of_image, of_text = random_pairs(23, 41, 3)
    found = rank_candidates(images, texts, (of_image, of_text), keep=7)
    similarity = images.astype(np.float64) @ texts.astype(np.float64).T
    for image in range(23):
        order = np.argsort(-similarity[image])
        positives = set(of_text[of_image == image].tolist())
        assert found.rank[image] == next(i for i, text in enumerate(order) if text in positives)
        assert found.positives[image] == len(positives)
        assert found.best[image] == next(text for text in order if text in positives)
        assert found.top[image].tolist() == order[:7].tolist()


@given(seed=st.integers(0, 10**6), tile=st.sampled_from([1, 50, 333, 10**6]))
@settings(max_examples=25, deadline=None)
def test_results_do_not_depend_on_tiling_or_order(seed, tile):
    rng = np.random.default_rng(seed)
    # Few distinct directions, so that ties abound.
    images = normalize(rng.integers(-1, 2, (30, 3)) + np.array([0, 0, 3]))
    texts = normalize(rng.integers(-1, 2, (20, 3)) + 2.5)
    of_image, of_text = random_pairs(30, 20, seed)
    before = rank_candidates(images, texts, (of_image, of_text))
    labels = rng.integers(0, 20, 30)
    classified = classify(images, texts, labels)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scores, "TILE", tile)
        image_order, text_order = rng.permutation(30), rng.permutation(20)
        new_image, new_text = np.argsort(image_order), np.argsort(text_order)
        after = rank_candidates(images[image_order], texts[text_order], (new_image[of_image], new_text[of_text]))
        again = classify(images[image_order], texts, labels[image_order])
    assert np.array_equal(after.rank, before.rank[image_order])
    assert np.array_equal(again.rank, classified.rank[image_order])
    assert np.array_equal(again.predicted, classified.predicted[image_order])
    assert np.array_equal(classified.rank == 0, classified.predicted == labels)


def test_chance_is_the_average_over_all_rankings():
    rng = np.random.default_rng(0)
    positives = np.array([1, 1, 3, 2])
    for k in (1, 5, 10):
        draws = [
            np.mean([(rng.permutation(9)[:k] < m).any() for m in positives.tolist()])  # the first m are the positives
            for _ in range(4000)
        ]
        assert recall_chance(positives, 9, k) == pytest.approx(np.mean(draws), abs=0.02)
    assert recall_chance(np.array([1]), 1000, 10) == pytest.approx(0.01, abs=1e-15)
    assert recall_chance(np.array([1, 2]), 3, 5) == 1.0
