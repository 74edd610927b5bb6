"""Matryoshka representations (Kusupati et al. 2022, arXiv 2205.13147): features whose first channels suffice alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def matryoshka(
    loss: Callable[..., Tensor], dims: Sequence[int], weights: Sequence[float] | None = None
) -> Callable[..., Tensor]:
    """Returns a loss of pairs, the weighted mean of `loss` over the first d channels for each d of `dims`.

    The features, [B, D] each, are cut and L2-normalised anew, in float32; other arguments are passed on as they are.
    `weights`: one for each of `dims`, by default equal. Raises ValueError for dims or weights that do not fit, and the
    loss that is returned does for features with fewer channels.
    """
    weights = [1.0] * len(dims) if weights is None else list(weights)
    if not dims or min(dims) < 1 or len(set(dims)) != len(dims):
        raise ValueError(f"dims are {list(dims)}: give distinct positive numbers of channels")
    if len(weights) != len(dims) or min(weights) < 0 or not sum(weights):
        raise ValueError(f"weights are {weights}: give one for each of the {len(dims)} dims, none negative, not all 0")

    def nested(image: Tensor, text: Tensor, *args: Any, **options: Any) -> Tensor:
        if max(dims) > image.shape[1]:
            raise ValueError(f"dims has {max(dims)}, but the features have {image.shape[1]} channels")
        total = image.new_zeros((), dtype=torch.float32)
        for channels, weight in zip(dims, weights, strict=True):
            cut = (F.normalize(features[:, :channels].float(), dim=-1) for features in (image, text))
            total = total + weight / sum(weights) * loss(*cut, *args, **options)
        return total

    return nested
