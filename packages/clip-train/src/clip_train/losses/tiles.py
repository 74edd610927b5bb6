"""Tiles of the similarity matrix of a batch, and sums of exponentials over its rows and columns.

Shapes: B samples of this rank, W ranks, N = W·B samples in all, D channels, t columns of a tile.

A rank holds its B rows of S = scale · X Yᵀ, t columns at a time, and never more of it. Row i of this rank is sample
`first` + i of all; its own similarity, S[i, first + i], is kept apart as `own`: where one summand outweighs all others,
the difference that the loss is made of would be lost in their sum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from clip_train.losses.exchange import Exchange
from clip_train.losses.products import mm

TILE_ELEMENTS = {"cpu": 2**19, "cuda": 2**26}
"""Elements of a tile by device type. On a CPU a tile of 2 MB stays in the cache between the operations on it."""
MIN_COLUMNS = 64


def column_tiles(rows: int, columns: int, device: torch.device, tile: int | None = None) -> Iterator[slice]:
    """Yields slices of `tile` columns, by default so many that a tile has the elements of TILE_ELEMENTS."""
    tile = tile or max(MIN_COLUMNS, TILE_ELEMENTS.get(device.type, TILE_ELEMENTS["cuda"]) // max(rows, 1))
    for start in range(0, columns, tile):
        yield slice(start, min(start + tile, columns))


@dataclass(frozen=True)
class Similarities:
    """The rows of S of this rank, by tiles of columns. The products have the dtype of `x_BD` and `y_ND`."""

    x_BD: Tensor
    """scaled features of this rank"""
    y_ND: Tensor
    first: int
    columns: int | None = None
    """columns of a tile; by default what TILE_ELEMENTS gives"""

    def parts(self) -> Iterator[slice]:
        """Yields the columns of each tile."""
        return column_tiles(len(self.x_BD), len(self.y_ND), self.x_BD.device, self.columns)

    def tile(self, part: slice, own: Tensor | float) -> Tensor:
        """Returns float32 [B, t], with `own` ([B], or a number) in the places of the own similarities."""
        s_Bt = mm(self.x_BD, self.y_ND[part].T).float()
        self.set_own(s_Bt, part, own)
        return s_Bt

    def set_own(self, s_Bt: Tensor, part: slice, own: Tensor | float) -> None:
        """Writes `own` ([B], or a number) where the rows of a tile meet their own columns."""
        diagonal = s_Bt.diagonal(self.first - part.start)
        if len(diagonal):
            row = max(0, part.start - self.first)
            diagonal.copy_(own[row : row + len(diagonal)]) if isinstance(own, Tensor) else diagonal.fill_(own)

    def products(self, x_BD: Tensor, coefficients: Callable[[slice], Tensor]) -> tuple[Tensor, Tensor]:
        """Returns float32 P Y, [B, D], and Pᵀ X, [N, D], of coefficients P that are made tile by tile."""
        x_BD, dtype = x_BD.to(self.y_ND.dtype), self.y_ND.dtype
        py_BD = torch.zeros_like(x_BD, dtype=torch.float32)
        px_ND = torch.empty_like(self.y_ND, dtype=torch.float32)
        for part in self.parts():
            p_Bt = coefficients(part).to(dtype)
            py_BD += mm(p_Bt, self.y_ND[part])
            px_ND[part] = mm(p_Bt.T, x_BD)
        return py_BD, px_ND


@dataclass(frozen=True)
class ExpSum:
    """Sums of exponentials, each as exp(top) · total. Two numbers, because their logarithm would lose digits."""

    top: Tensor
    total: Tensor

    @classmethod
    def empty(cls, count: int, device: torch.device) -> ExpSum:
        lowest = torch.finfo(torch.float32).min
        return cls(torch.full((count,), lowest, device=device), torch.zeros(count, device=device))

    @classmethod
    def over(cls, s_Bt: Tensor, dim: int) -> ExpSum:
        """Sums exp of a tile over a dimension, in which -inf counts nothing."""
        top = s_Bt.amax(dim).clamp_(min=torch.finfo(s_Bt.dtype).min)
        return cls(top, (s_Bt - top.unsqueeze(dim)).exp_().sum(dim))

    def __add__(self, other: ExpSum) -> ExpSum:
        top = torch.maximum(self.top, other.top)
        total = self.total * (self.top - top).exp_() + other.total * (other.top - top).exp_()
        return ExpSum(top, total)

    @classmethod
    def cat(cls, parts: Sequence[ExpSum]) -> ExpSum:
        return cls(torch.cat([part.top for part in parts]), torch.cat([part.total for part in parts]))

    def over_ranks(self, exchange: Exchange) -> ExpSum:
        """Sums over the ranks: a maximum and a sum travel, twice N numbers whatever the number of ranks."""
        top = exchange.max(self.top.clone())
        return ExpSum(top, exchange.sum(self.total * (self.top - top).exp_()))

    def log_over(self, own: Tensor) -> Tensor:
        """Returns the logarithm of the sums, less `own`."""
        return (self.top - own) + self.total.log()

    def with_own(self, own: Tensor) -> ExpSum:
        """Adds exp(own) to each sum."""
        return self + ExpSum(own, torch.ones_like(own))

    def softmax(self, s_Bt: Tensor, dim: int) -> Tensor:
        """Returns exp of a tile over these sums, which run over `dim`."""
        return (s_Bt - self.top.unsqueeze(dim)).exp_().mul_(self.total.reciprocal().unsqueeze(dim))

    def __getitem__(self, part: slice) -> ExpSum:
        return ExpSum(self.top[part], self.total[part])


@dataclass(frozen=True)
class WeightedSum:
    """Sums over rows or columns of exp R, and of exp R times other values S, relative to the top of the first."""

    sums: ExpSum
    product: Tensor

    @classmethod
    def over(cls, r_Bt: Tensor, s_Bt: Tensor, dim: int) -> WeightedSum:
        top = r_Bt.amax(dim).clamp_(min=torch.finfo(r_Bt.dtype).min)
        e_Bt = (r_Bt - top.unsqueeze(dim)).exp_()
        return cls(ExpSum(top, e_Bt.sum(dim)), e_Bt.mul_(s_Bt).sum(dim))

    def __add__(self, other: WeightedSum) -> WeightedSum:
        sums = self.sums + other.sums
        return WeightedSum(sums, self._product_from(sums.top) + other._product_from(sums.top))

    @classmethod
    def cat(cls, parts: Sequence[WeightedSum]) -> WeightedSum:
        return cls(ExpSum.cat([part.sums for part in parts]), torch.cat([part.product for part in parts]))

    def __getitem__(self, part: slice) -> WeightedSum:
        return WeightedSum(self.sums[part], self.product[part])

    def _product_from(self, top: Tensor) -> Tensor:
        return self.product * (self.sums.top - top).exp()

    def over_ranks(self, exchange: Exchange) -> WeightedSum:
        sums = self.sums.over_ranks(exchange)
        return WeightedSum(sums, exchange.sum(self._product_from(sums.top)))

    def mean(self, own: Tensor) -> Tensor:
        """Returns the softmax of R applied to S, in which the own sample, R = `own`, counts with S = 0."""
        whole = self.sums.with_own(own)
        return self._product_from(whole.top) / whole.total


def two_softmaxes(s_Bt: Tensor, rows: ExpSum, columns: ExpSum) -> Tensor:
    """Returns the softmax of a tile over rows plus that over columns, both with the sums of the whole matrix."""
    p_Bt = rows.softmax(s_Bt, 1)
    q_Bt = s_Bt.sub_(columns.top).exp_()
    return p_Bt.addcmul_(q_Bt, columns.total.reciprocal()[None])


def own_loss(log_ratio: Tensor) -> Tensor:
    """Returns −log of the own softmax, given the log of the ratio of all others to it."""
    return F.softplus(log_ratio)


def off_own_sums(similarities: Similarities, exchange: Exchange) -> tuple[ExpSum, ExpSum]:
    """Returns sums over the rows of this rank, [B], and over the columns of all ranks, [N], without the own pairs."""
    rows, columns = ExpSum.empty(len(similarities.x_BD), similarities.x_BD.device), []
    for part in similarities.parts():
        s_Bt = similarities.tile(part, -torch.inf)
        rows += ExpSum.over(s_Bt, 1)
        columns.append(ExpSum.over(s_Bt, 0))
    return rows, ExpSum.cat(columns).over_ranks(exchange)
