import numpy as np
import pytest

from clip_eval.intervals import bootstrap_macro, wilson


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    # Newcombe 1998, table I, method 3
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_as_published(hits, n, low, high):
    assert wilson(hits, n) == pytest.approx((low, high), abs=5e-5)


def test_wilson_is_symmetric_and_stays_inside():
    for n in (1, 7, 1000):
        for hits in {0, 1, n // 2, n - 1, n}:
            low, high = wilson(hits, n)
            assert 0 <= low <= hits / n <= high <= 1
            assert wilson(n - hits, n) == pytest.approx((1 - high, 1 - low), abs=1e-12)


def test_intervals_cover_the_truth_about_95_times_in_100():
    rng = np.random.default_rng(1)
    truth = rng.uniform(0.3, 0.9, 10)
    counts = np.full(10, 30)
    covered = {"wilson": 0, "bootstrap": 0}
    for trial in range(200):
        correct = rng.binomial(counts, truth)
        low, high = bootstrap_macro(correct, counts, seed=trial)
        covered["bootstrap"] += low <= truth.mean() <= high
        low, high = wilson(int(rng.binomial(60, 0.2)), 60)
        covered["wilson"] += low <= 0.2 <= high
    assert 0.88 <= covered["wilson"] / 200 <= 0.99
    assert 0.88 <= covered["bootstrap"] / 200 <= 0.99


def test_bootstrap_is_seeded_and_holds_the_estimate():
    correct, counts = np.array([3, 0, 9, 0]), np.array([5, 4, 10, 0])
    low, high = bootstrap_macro(correct, counts)
    assert (low, high) == bootstrap_macro(correct, counts)
    assert low < np.mean([3 / 5, 0, 9 / 10]) < high


def test_of_one_large_class_the_bootstrap_is_the_normal_interval_of_95_percent():
    low, high = bootstrap_macro(np.array([5000]), np.array([10000]))
    assert high - low == pytest.approx(2 * 1.96 * 0.005, rel=0.08)  # at 90 % it is 16 % less


def test_the_macro_interval_has_a_width_where_no_draw_differs():
    assert bootstrap_macro(np.array([0]), np.array([10])) == pytest.approx(wilson(0, 10))
    for correct, value in (([0, 0], 0), ([400, 600], 1), ([400, 0], 0.5)):  # all wrong, all right, always one class
        low, high = bootstrap_macro(np.array(correct), np.array([400, 600]))
        assert low <= value <= high
        assert 0.001 < high - low < 0.02


def test_one_sample_per_class_still_has_a_width():
    low, high = bootstrap_macro(np.array([1, 0, 1, 0, 1, 1]), np.ones(6, np.int64))
    assert high - low > 0.3
