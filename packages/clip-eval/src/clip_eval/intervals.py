"""95 % confidence intervals: Wilson's for proportions, a seeded bootstrap over samples for macro means."""

import math

import numpy as np

Z = 1.959963984540054  # the normal distribution's 97.5 % point
RESAMPLES = 2000


def wilson(hits: int, n: int) -> tuple[float, float]:
    """Returns Wilson's score interval of hits / n, which is inside [0, 1] and has a width at 0 and at 1."""
    share = hits / n
    centre = (share + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z / (1 + Z * Z / n) * math.sqrt(share * (1 - share) / n + Z * Z / (4 * n * n))
    # At the ends the formula meets the estimate exactly; float rounding must not cut it off.
    return (0.0 if hits == 0 else max(0.0, centre - half), 1.0 if hits == n else min(1.0, centre + half))


def bootstrap_macro(correct: np.ndarray, counts: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """Returns the percentile bootstrap of the mean of correct / counts over the classes with samples; int64 [C] each.

    Samples are drawn with replacement from the pooled set; a class that a draw misses is left out of that draw's mean,
    as an empty class is left out of the metric. If each class is all right or all wrong, draws do not vary: Wilson
    intervals of the classes are combined instead (MOVER, Zou and Donner 2008).
    """
    n = int(counts.sum())
    present = counts > 0
    right, wrong = correct[present], (counts - correct)[present]
    if not (right * wrong).any():
        shares = right / (right + wrong)
        ends = np.array([wilson(hits, of) for hits, of in zip(right.tolist(), (right + wrong).tolist(), strict=True)])
        below, above = np.sqrt(((ends.T - shares) ** 2).sum(axis=1)) / len(shares)
        return float(max(0.0, shares.mean() - below)), float(min(1.0, shares.mean() + above))
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(n, np.concatenate([right, wrong]) / n, size=RESAMPLES)
    drawn_right, drawn_wrong = draws[:, : len(right)], draws[:, len(right) :]
    drawn = drawn_right + drawn_wrong
    recall = np.divide(drawn_right, drawn, out=np.zeros(drawn.shape), where=drawn > 0)
    means = recall.sum(axis=1) / (drawn > 0).sum(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)
