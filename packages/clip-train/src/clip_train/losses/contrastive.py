"""The contrastive loss of CLIP (Radford et al. 2021), exact on any number of ranks, without an N × N matrix.

Shapes: B pairs of this rank, W ranks, N = W·B pairs in all, D channels, t rows of a tile.

    loss = 1/(2N) · Σ_i [ log Σ_j exp(S_ij − S_ii) + log Σ_j exp(S_ji − S_ii) ],   S = scale · X Yᵀ

Each rank holds its B rows of S, t of them at a time, so memory grows with N, not with N². The sums over columns are
combined from the ranks' parts, so every similarity is computed once forward and once backward. The score of the own
pair is subtracted before the logarithm, because late in training the loss is the small difference of large numbers.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from clip_train.parallel import all_gather, reduce_scatter

TILE_ROWS = 1024


class _Contrastive(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BD: Tensor, y_BD: Tensor, scale: Tensor, ranks: int, tile: int) -> Tensor:
        rows = x_BD.shape[0]
        first = dist.get_rank() * rows if ranks > 1 else 0
        own_B = scale * (x_BD * y_BD).sum(1)
        y_ND, own_N = (all_gather(y_BD), all_gather(own_B)) if ranks > 1 else (y_BD, own_B)
        row_B, column_N = torch.empty_like(own_B), torch.full_like(own_N, -torch.inf)
        for start in range(0, rows, tile):
            s_tN = _similarities(x_BD, y_ND, own_B, scale, first, start, tile)
            row_B[start : start + tile] = torch.logsumexp(s_tN - own_B[start : start + tile, None], 1)
            column_N = torch.logaddexp(column_N, torch.logsumexp(s_tN - own_N, 0))
        if ranks > 1:
            column_N = torch.logsumexp(all_gather(column_N[None]), 0)
        total = (row_B + column_N[first : first + rows]).sum(dtype=torch.float64)
        if ranks > 1:
            dist.all_reduce(total)
        ctx.save_for_backward(x_BD, y_ND, scale, own_B, own_N, row_B, column_N)
        ctx.ranks, ctx.first, ctx.tile = ranks, first, tile
        return (total / (2 * len(own_N))).to(x_BD.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x_BD, y_ND, scale, own_B, own_N, row_B, column_N = ctx.saved_tensors
        rows, pairs = len(own_B), len(own_N)
        grad_x_BD, grad_y_ND = torch.empty_like(x_BD), torch.zeros_like(y_ND)
        off_B = torch.expm1(-row_B) + torch.expm1(-column_N[ctx.first : ctx.first + rows])
        for start in range(0, rows, ctx.tile):
            part = slice(start, start + ctx.tile)
            s_tN = _similarities(x_BD, y_ND, own_B, scale, ctx.first, start, ctx.tile)
            # 2N · d loss / d S: the sum of the two softmaxes, minus one for each at the true pairs.
            p_tN = torch.exp(s_tN - (own_B + row_B)[part, None]).add_(torch.exp(s_tN - (own_N + column_N)))
            p_tN.diagonal(ctx.first + start)[: len(off_B[part])] = off_B[part]
            torch.matmul(p_tN, y_ND, out=grad_x_BD[part])
            grad_y_ND.addmm_(p_tN.T, x_BD[part])
        grad_y_BD = reduce_scatter(grad_y_ND) if ctx.ranks > 1 else grad_y_ND
        # Multiplied by the ranks, because the gradients of the parameters are averaged over them afterwards.
        share = grad * (ctx.ranks / (2 * pairs))
        grad_scale = share * (grad_x_BD * x_BD).sum()
        return share * scale * grad_x_BD, share * scale * grad_y_BD, grad_scale, None, None


def _similarities(
    x_BD: Tensor, y_ND: Tensor, own_B: Tensor, scale: Tensor, first: int, start: int, tile: int
) -> Tensor:
    """Returns rows `start` to `start + tile` of this rank's part of S, with exactly `own_B` for the true pairs."""
    s_tN = (scale * x_BD[start : start + tile]) @ y_ND.T
    own = own_B[start : start + tile]
    s_tN.diagonal(first + start)[: len(own)] = own
    return s_tN


def contrastive_loss(image: Tensor, text: Tensor, scale: Tensor, *, ranks: int = 1, tile: int = TILE_ROWS) -> Tensor:
    """Returns the mean contrastive loss of the pairs of all ranks, a float32 scalar that is the same on every rank.

    `image`, `text`: [B, D], L2-normalised. Row i of both is a pair; B is the same on every rank. `scale`: the
    exponentiated logit scale, a scalar. The loss is computed in float32, also under autocast. Averaging the parameter
    gradients over the ranks, as DistributedDataParallel does, gives the gradient of this loss. With `ranks` = 1
    nothing is exchanged, even if there is a process group.
    """
    with torch.autocast(image.device.type, enabled=False):
        return _Contrastive.apply(image.float(), text.float(), scale.float(), ranks, tile)
