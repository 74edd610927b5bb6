"""clip_benchmark's definitions (its release 1.6), written out one query at a time, against ours."""

import numpy as np
import pytest

from clip_eval.metrics import classify, confusion_matrix, per_class_recall, rank_candidates, zero_shot_classifier

pytestmark = pytest.mark.parity


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def features(count: int, seed: int, width: int = 24) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)


def reference_classification(images: np.ndarray, prompts: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """prompts [C, T, D]; acc1, acc5 and the balanced accuracy of the best class."""
    weights = np.stack([unit(unit(of_class).mean(axis=0)) for of_class in prompts], axis=1)
    logits = 100.0 * unit(images) @ weights
    order = np.argsort(-logits, axis=1)
    recalls = [np.mean(order[truth == c, 0] == c) for c in range(len(prompts)) if (truth == c).any()]
    return {
        "acc1": np.mean([t in row[:1] for row, t in zip(order, truth, strict=True)]),
        "acc5": np.mean([t in row[:5] for row, t in zip(order, truth, strict=True)]),
        "mean_per_class_recall": np.mean(recalls),
    }


def reference_recall(images: np.ndarray, texts: np.ndarray, image_of_text: np.ndarray, k: int) -> tuple[float, float]:
    """(image retrieval, text retrieval): one image per caption, several captions per image."""
    similarity = unit(texts) @ unit(images).T
    image_hits = [image_of_text[t] in np.argsort(-similarity[t])[:k] for t in range(len(texts))]
    text_hits = [image in image_of_text[np.argsort(-similarity[:, image])[:k]] for image in range(len(images))]
    return float(np.mean(image_hits)), float(np.mean(text_hits))


@pytest.mark.parametrize("seed", range(5))
def test_classification(seed):
    prompts = features(12 * 3, seed, 24).reshape(12, 3, 24)
    truth = np.random.default_rng(seed).integers(0, 11, 200)  # the last class stays empty
    images = features(200, seed + 100) + 0.7 * prompts.mean(axis=1)[truth]
    expected = reference_classification(images, prompts, truth)
    result = classify(unit(images), zero_shot_classifier(prompts.reshape(36, 24), [3] * 12), truth)
    recall = per_class_recall(confusion_matrix(truth, result.predicted, 12))
    assert (result.rank < 1).mean() == expected["acc1"]
    assert (result.rank < 5).mean() == expected["acc5"]
    assert np.nanmean(recall) == pytest.approx(expected["mean_per_class_recall"], abs=1e-12)
    assert 0.2 < expected["acc1"] < 0.95


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("k", [1, 5, 10])
def test_retrieval_with_several_captions_per_image(seed, k):
    rng = np.random.default_rng(seed)
    image_of_text = np.sort(np.concatenate([np.arange(40), rng.integers(0, 40, 110)]))
    images = features(40, seed)
    texts = features(150, seed + 50) + images[image_of_text]
    pairs = (image_of_text, np.arange(150))
    expected = reference_recall(images, texts, image_of_text, k)
    to_image = rank_candidates(unit(texts), unit(images), pairs[::-1])
    to_text = rank_candidates(unit(images), unit(texts), pairs)
    assert ((to_image.rank < k).mean(), (to_text.rank < k).mean()) == expected
    assert min(expected) > 0.1
