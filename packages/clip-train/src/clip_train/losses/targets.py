"""What the softmax of a contrastive loss is compared with: the own sample, smoothed, or all samples of a group."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from clip_train.losses.exchange import Exchange


@dataclass(frozen=True)
class Targets:
    """The targets Q of this rank's rows and columns, applied to features: Q Y = weight · Y + y_BD, likewise for X.

    Q has the same value at (i, j) and (j, i). Without groups and smoothing `weight` is one and the rest is None.
    """

    weight: Tensor
    """[B]: the target of the own pair"""
    x_BD: Tensor | None = None
    """what the other images add, for each caption"""
    y_BD: Tensor | None = None
    """what the other captions add, for each image"""

    def beyond_own(self, own_B: Tensor, x_BD: Tensor, y_BD: Tensor, scale: Tensor) -> Tensor:
        """Returns the own similarity less the target's, Σ_j Q_ij S_ij, of each row plus that of each column."""
        if self.x_BD is None or self.y_BD is None:
            return torch.zeros_like(own_B)
        return 2 * (1 - self.weight) * own_B - scale * (x_BD * self.y_BD + y_BD * self.x_BD).sum(1)

    def subtract(self, py_BD: Tensor, px_BD: Tensor) -> tuple[Tensor, Tensor]:
        """Subtracts twice the targets of other pairs from the products of the softmaxes with Y and X."""
        if self.x_BD is None or self.y_BD is None:
            return py_BD, px_BD
        return py_BD - 2 * self.y_BD, px_BD - 2 * self.x_BD


def make_targets(
    x_BD: Tensor, y_BD: Tensor, y_ND: Tensor, groups: Tensor | None, smoothing: float, exchange: Exchange
) -> Targets:
    """Returns Q_ij = (1 − smoothing) · [i, j positive] / positives of i + smoothing / N."""
    if groups is None and not smoothing:
        return Targets(torch.ones_like(x_BD[:, 0]))
    count = torch.ones_like(x_BD[:, 0])
    rest_x, rest_y = torch.zeros_like(x_BD), torch.zeros_like(y_BD)
    if groups is not None:
        segment_N, count_N = _segments(exchange.gather(groups))
        own = slice(exchange.rank * len(x_BD), (exchange.rank + 1) * len(x_BD))
        count = count_N[own].to(x_BD.dtype)
        rest_x, rest_y = (
            (_group_sums(whole_ND, segment_N)[segment_N[own]] - local_BD) / count[:, None]
            for whole_ND, local_BD in ((exchange.gather(x_BD), x_BD), (y_ND, y_BD))
        )
    if smoothing:
        every_x, every_y = exchange.sum(x_BD.sum(0)), y_ND.sum(0)
        rest_x, rest_y = (
            (1 - smoothing) * rest + smoothing / len(y_ND) * every
            for rest, every in ((rest_x, every_x), (rest_y, every_y))
        )
    return Targets((1 - smoothing) / count, rest_x, rest_y)


def _segments(groups_N: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the segment of each sample, of which there are at most N, and the size of the segment.

    Sorting has a result of fixed size, for which the host need not wait for the device, as it would with `unique`.
    """
    place = torch.arange(len(groups_N), device=groups_N.device)
    keys, order = torch.where(groups_N < 0, -1 - place, groups_N).sort()
    steps = torch.cat([torch.zeros_like(keys[:1]), (keys[1:] != keys[:-1]).long()]).cumsum(0)
    segment_N = torch.empty_like(steps).scatter_(0, order, steps)
    sizes = torch.zeros_like(steps).index_add_(0, segment_N, torch.ones_like(steps))
    return segment_N, sizes[segment_N]


def _group_sums(whole_ND: Tensor, segment_N: Tensor) -> Tensor:
    return torch.zeros_like(whole_ND).index_add_(0, segment_N, whole_ND)
