import numpy as np
import pytest

from clip_eval import ClipEvalError, scores
from clip_eval.scores import normalize, on_grid, score_tiles


def unit_vectors(count: int, width: int, seed: int) -> np.ndarray:
    return normalize(np.random.default_rng(seed).normal(size=(count, width)))


def all_scores(queries: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    return np.concatenate([tile for _, tile in score_tiles(queries, candidates)])


def test_scores_are_the_cosines():
    queries, candidates = unit_vectors(50, 96, 0), unit_vectors(70, 96, 1)
    expected = queries.astype(np.float64) @ candidates.astype(np.float64).T
    found = all_scores(queries, candidates)
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() < 2e-7


def test_scores_do_not_depend_on_tiling_order_or_summation(monkeypatch):
    queries, candidates = unit_vectors(97, 333, 2), unit_vectors(61, 333, 3)
    whole = all_scores(queries, candidates)
    for tile in (1, 61 * 7, 10**6):
        monkeypatch.setattr(scores, "TILE", tile)
        assert np.array_equal(all_scores(queries, candidates), whole)
    shuffled = np.random.default_rng(4).permutation(333)  # another order of the sum
    assert np.array_equal(all_scores(queries[:, shuffled], candidates[:, shuffled]), whole)


def test_every_partial_sum_is_exact_in_float64():
    left, right = on_grid(unit_vectors(4, 1024, 5)), on_grid(unit_vectors(4, 1024, 6))
    for a, b in zip(left, right, strict=True):
        exact = sum(int(x * 2**26) * int(y * 2**26) for x, y in zip(a.tolist(), b.tolist(), strict=True))
        assert int((a @ b) * 2**52) == exact


def test_equal_vectors_score_equally():
    candidates = np.repeat(unit_vectors(1, 512, 7), 40, axis=0)
    assert len(np.unique(all_scores(unit_vectors(1, 512, 8), candidates))) == 1


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_a_vector_without_direction_is_an_error(value):
    features = np.ones((3, 4))
    features[1] = value
    with pytest.raises(ClipEvalError, match=r"1 of 3 feature vectors .* row 1"):
        normalize(features)
