"""Similarity scores that do not depend on how they are computed.

Features are unit vectors rounded to multiples of 2^-26. A product of two such numbers is a multiple of 2^-52, and by
Cauchy-Schwarz every partial sum of a dot product stays near or below 1, so float64 holds all of them exactly: batch
size, tiling, threads and the order of the sum cannot change a bit. One rounding to float32 gives the score.
"""

from collections.abc import Iterator

import numpy as np

from clip_eval.errors import ClipEvalError

GRID = 2.0**26
TILE = 1 << 22  # scores held at once: 48 MB in both precisions


def normalize(features: np.ndarray) -> np.ndarray:
    """Returns the rows of [N, D] as unit vectors, float32. Raises ClipEvalError for a row without a direction."""
    wide = np.asarray(features, dtype=np.float64)
    norms = np.linalg.norm(wide, axis=-1, keepdims=True)
    bad = np.flatnonzero(~(np.isfinite(norms[:, 0]) & (norms[:, 0] > 0)))
    if len(bad):
        raise ClipEvalError(
            f"{len(bad)} of {len(wide)} feature vectors are zero or not finite (first: row {bad[0]}): "
            "the model's weights are broken or overflow in this precision"
        )
    unit: np.ndarray = wide / norms
    return unit.astype(np.float32)


def on_grid(features: np.ndarray) -> np.ndarray:
    """Returns unit vectors [N, D] rounded to multiples of 2^-26, as float64: the operands of exact scores."""
    return np.rint(np.asarray(features, dtype=np.float64) * GRID) / GRID


def score_tiles(queries: np.ndarray, candidates: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Yields cosines of unit vectors [Q, D] and [C, D], as (rows, float32 [rows, C]) for successive runs of queries."""
    left, right = on_grid(queries), on_grid(candidates).T
    step = max(1, TILE // max(1, right.shape[1]))
    for start in range(0, len(left), step):
        rows = slice(start, min(start + step, len(left)))
        yield rows, (left[rows] @ right).astype(np.float32)
