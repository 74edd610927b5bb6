"""The sigmoid loss of SigLIP (Zhai et al. 2023, arXiv 2303.15343), exact on any number of ranks.

Shapes: B pairs of this rank, W ranks, N = W·B pairs in all, D channels, M captions at hand, t columns of a tile.

    loss = −1/N · Σ_ij log σ(z_ij · (scale · x_i·y_j + bias)),   z_ij = 1 for positives, −1 for all others

No similarity depends on another one, so the gradient is computed in the forward pass, with each similarity: three
matrix products instead of four, and the captions travel once. With the ring, they and their gradient go from neighbour
to neighbour and a rank holds those of two ranks at a time; with the gather, it holds all N.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from clip_train.losses.exchange import Exchange
from clip_train.losses.products import mm
from clip_train.losses.tiles import column_tiles


@dataclass
class _Pairs:
    """The images of this rank, with the loss and the gradients that the captions seen so far have given."""

    x_BD: Tensor
    scale: Tensor
    bias: Tensor
    first: int
    groups_N: Tensor | None
    chunk: int | None
    gradients: bool

    def __post_init__(self) -> None:
        self.total = self.x_BD.new_zeros((), dtype=torch.float64)
        self.grad_bias = torch.zeros_like(self.total)
        self.grad_x_BD = torch.zeros_like(self.x_BD)

    def visit(self, y_MD: Tensor, start: int) -> Tensor:
        """Adds the pairs with M captions, of which the first is sample `start` of all. Returns N · d loss / d S · X."""
        scaled_x_BD, grad_y_MD = self.scale * self.x_BD, torch.zeros_like(y_MD)
        for part in column_tiles(len(self.x_BD), len(y_MD), y_MD.device, self.chunk):
            s_Bt = mm(scaled_x_BD, y_MD[part].T).add_(self.bias)
            positive = self._negate_positives(s_Bt, start + part.start)
            self.total += F.softplus(s_Bt).sum()
            if self.gradients:
                p_Bt = s_Bt.sigmoid_()
                self._negate_positives(p_Bt, start + part.start, positive)
                self.grad_bias += p_Bt.sum()
                self.grad_x_BD += mm(p_Bt, y_MD[part])
                grad_y_MD[part] = mm(p_Bt.T, self.x_BD)
        return grad_y_MD

    def _negate_positives(self, s_Bt: Tensor, start: int, positive: Tensor | None = None) -> Tensor | None:
        """Negates the positives of a tile that begins at sample `start`, in place. Returns its mask, with groups."""
        if self.groups_N is None:
            s_Bt.diagonal(self.first - start).neg_()
            return None
        if positive is None:
            own_B1 = self.groups_N[self.first : self.first + len(s_Bt), None]
            positive = own_B1 == self.groups_N[start : start + s_Bt.shape[1]]
        s_Bt.copy_(torch.where(positive, -s_Bt, s_Bt))
        return positive


class _Sigmoid(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_BD: Tensor,
        y_BD: Tensor,
        scale: Tensor,
        bias: Tensor,
        groups_N: Tensor | None,
        chunk: int | None,
        gradients: bool,
        ranks: int,
        ring: bool,
    ) -> Tensor:
        exchange, rows = Exchange(ranks), len(x_BD)
        pairs = _Pairs(x_BD, scale, bias, exchange.rank * rows, groups_N, chunk, gradients)
        if ring:
            grad_y_BD = exchange.pass_round(y_BD, lambda y, origin: pairs.visit(y, origin * rows))
        else:
            grad_y_BD = exchange.scatter(pairs.visit(exchange.gather(y_BD), 0))
        ctx.save_for_backward(scale, pairs.grad_x_BD, grad_y_BD, (pairs.grad_x_BD * x_BD).sum(), pairs.grad_bias)
        # 1/N, times the ranks, because the gradients of the parameters are averaged over them afterwards.
        ctx.share = 1 / rows
        return (exchange.sum(pairs.total) / (ranks * rows)).float()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        scale, grad_x_BD, grad_y_BD, grad_scale, grad_bias = ctx.saved_tensors
        share = grad * ctx.share
        grads = share * scale * grad_x_BD, share * scale * grad_y_BD, share * grad_scale, share * grad_bias.float()
        return *grads, None, None, None, None, None


def sigmoid_loss(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    bias: Tensor,
    *,
    ranks: int = 1,
    exchange: Literal["ring", "gather"] = "ring",
    groups: Tensor | None = None,
    chunk: int | None = None,
) -> Tensor:
    """Returns the sigmoid loss over all pairs of samples of all ranks, per sample: a float32 scalar, the same on each.

    `image`, `text`: [B, D], L2-normalised; B is the same on every rank. `scale`: the exponentiated logit scale,
    `bias`: the logit bias, scalars. Computed in float32, also under autocast. Averaging the parameter gradients over
    the ranks gives the gradient of this loss. With `ranks` = 1 nothing is exchanged.

    `exchange`: ring, which holds the captions of two ranks at a time, or gather, which holds all, in fewer messages.
    `groups`: int64 [B]. Samples of an equal, non-negative group are positives of each other; −1 stands alone.
    `chunk`: columns of the similarities that are held at a time.
    """
    if exchange not in ("ring", "gather"):
        raise ValueError(f"exchange is {exchange!r}: choose ring or gather")
    inputs = image, text, scale, bias
    gradients = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs)
    with torch.autocast(image.device.type, enabled=False):
        x_BD, y_BD, scale, bias = (tensor.float() for tensor in inputs)
        groups_N = None
        if groups is not None:
            groups_N = Exchange(ranks).gather(groups)
            alone = -1 - torch.arange(len(groups_N), device=groups.device)
            groups_N = torch.where(groups_N < 0, alone, groups_N)
        loss: Tensor = _Sigmoid.apply(x_BD, y_BD, scale, bias, groups_N, chunk, gradients, ranks, exchange == "ring")
        return loss
