"""The contrastive loss of CLIP (Radford et al. 2021), exact on any number of ranks, without an N × N matrix.

Shapes: B pairs of this rank, W ranks, N = W·B pairs in all, D channels, t columns of a tile.

    loss = 1/(2N) · Σ_i [ log Σ_j exp S_ij − Σ_j Q_ij S_ij + log Σ_j exp S_ji − Σ_j Q_ij S_ji ],   S = scale · X Yᵀ

Q is the identity, or what `groups` and `label_smoothing` make of it. Each rank holds its B rows of S, t columns of them
at a time. The sums over columns are combined from the ranks' parts, so every similarity is computed once forward and
once backward. Memory grows with N · D, and so does what a rank sends: the captions' features and their gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from clip_train.losses.exchange import Exchange
from clip_train.losses.targets import make_targets
from clip_train.losses.tiles import Similarities, off_own_sums, own_loss, two_softmaxes

LOGITS = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class _Options:
    exchange: Exchange
    smoothing: float
    dtype: torch.dtype
    tile: int | None

    def similarities(self, x_BD: Tensor, y_ND: Tensor, scale: Tensor) -> Similarities:
        first = self.exchange.rank * len(x_BD)
        return Similarities((scale * x_BD).to(self.dtype), y_ND.to(self.dtype), first, self.tile)


class _Contrastive(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_BD: Tensor, y_BD: Tensor, scale: Tensor, groups: Tensor | None, options: _Options
    ) -> Tensor:
        exchange, first = options.exchange, options.exchange.rank * len(x_BD)
        own_B, y_ND = scale * (x_BD * y_BD).sum(1), exchange.gather(y_BD)
        rows, columns = off_own_sums(options.similarities(x_BD, y_ND, scale), exchange)
        row_B, column_B = rows.log_over(own_B), columns[first : first + len(x_BD)].log_over(own_B)
        targets = make_targets(x_BD, y_BD, y_ND, groups, options.smoothing, exchange)
        ctx.save_for_backward(x_BD, y_ND, scale)
        ctx.sums = rows.with_own(own_B), columns.with_own(exchange.gather(own_B))
        # 2N · d loss / d S of the own pairs: the two softmaxes less one each, without cancellation.
        ctx.off_B = 2 * (1 - targets.weight) - torch.sigmoid(row_B) - torch.sigmoid(column_B)
        ctx.targets, ctx.options = targets, options
        return exchange.mean_of_samples(
            (own_loss(row_B) + own_loss(column_B) + targets.beyond_own(own_B, x_BD, y_BD, scale)) / 2
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x_BD, y_ND, scale = ctx.saved_tensors
        options, (rows, columns) = ctx.options, ctx.sums
        with torch.autocast(x_BD.device.type, enabled=False):
            similarities = options.similarities(x_BD, y_ND, scale)

            def coefficients(part: slice) -> Tensor:
                p_Bt = two_softmaxes(similarities.tile(part, -torch.inf), rows, columns[part])
                similarities.set_own(p_Bt, part, ctx.off_B)
                return p_Bt

            py_BD, px_ND = similarities.products(x_BD, coefficients)
            grad_x_BD, grad_y_BD = ctx.targets.subtract(py_BD, options.exchange.scatter(px_ND))
            # Multiplied by the ranks, because the gradients of the parameters are averaged over them afterwards.
            share = grad * (options.exchange.ranks / (2 * len(y_ND)))
            grad_scale = share * (grad_x_BD * x_BD).sum()
            return share * scale * grad_x_BD, share * scale * grad_y_BD, grad_scale, None, None


def contrastive_loss(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    *,
    ranks: int = 1,
    label_smoothing: float = 0.0,
    groups: Tensor | None = None,
    logits: Literal["fp32", "bf16"] = "fp32",
    tile: int | None = None,
) -> Tensor:
    """Returns the mean contrastive loss of the pairs of all ranks, a float32 scalar that is the same on every rank.

    `image`, `text`: [B, D], L2-normalised. Row i of both is a pair; B is the same on every rank. `scale`: the
    exponentiated logit scale, a scalar. Averaging the parameter gradients over the ranks, as DistributedDataParallel
    does, gives the gradient of this loss. With `ranks` = 1 nothing is exchanged, even if there is a process group.

    `label_smoothing`: share of the target, in [0, 1], that is spread over all N samples (Szegedy et al. 2016).
    `groups`: int64 [B]. Samples of an equal, non-negative group are positives of each other, such as duplicates of a
    caption, and share the target equally, as in supervised contrastive learning (Khosla et al. 2020); −1 stands alone.
    `logits`: fp32, also under autocast; bf16 rounds features, similarities and their gradients as OpenCLIP does under
    autocast: faster where the hardware multiplies bf16, but the gradient is only right to about 1 %.
    `tile`: columns of the similarities that are held at a time.
    """
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing is {label_smoothing}: give a share between 0 and 1")
    if logits not in LOGITS:
        raise ValueError(f"logits is {logits!r}: choose one of {', '.join(LOGITS)}")
    options = _Options(Exchange(ranks), label_smoothing, LOGITS[logits], tile)
    with torch.autocast(image.device.type, enabled=False):
        loss: Tensor = _Contrastive.apply(image.float(), text.float(), scale.float(), groups, options)
        return loss
