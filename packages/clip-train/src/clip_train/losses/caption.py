"""The captioning loss of CoCa (Yu et al. 2022, arXiv 2205.01917): cross entropy of the next token.

Shapes: B captions of this rank, L tokens, V entries of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from clip_train.losses.exchange import Exchange

CHUNK_ELEMENTS = 2**22
"""Logits that are held in float32 at a time: 16 MB."""


class _Caption(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, ignore: int, weight: Tensor, ranks: int) -> Tensor:
        total = logits.new_zeros((), dtype=torch.float64)
        for part in _chunks(logits):
            rows, targets = logits[part].float().flatten(0, -2), labels[part].flatten()
            total += F.cross_entropy(rows, targets, ignore_index=ignore, reduction="sum")
        ctx.save_for_backward(logits, labels)
        # Multiplied by the ranks, because the gradients of the parameters are averaged over them afterwards.
        ctx.ignore, ctx.share = ignore, (ranks * weight).float()
        return Exchange(ranks).sum(total * weight).float()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        logits, labels = ctx.saved_tensors
        share = grad * ctx.share
        grad_logits = torch.empty_like(logits, memory_format=torch.contiguous_format)
        for part in _chunks(logits):
            p_rV = logits[part].float().flatten(0, -2).softmax(-1)
            valid_r1 = (labels[part].flatten() != ctx.ignore)[:, None]
            target_r1 = labels[part].flatten()[:, None].where(valid_r1, 0)
            p_rV.scatter_add_(1, target_r1, torch.full_like(target_r1, -1, dtype=p_rV.dtype))
            # Not a product with zero, which would keep a non-finite value of a token that does not count.
            p_rV = torch.where(valid_r1, p_rV.mul_(share), 0)
            grad_logits[part] = p_rV.view(grad_logits[part].shape)
        return grad_logits, None, None, None, None


def _chunks(logits: Tensor) -> Iterator[slice]:
    step = max(1, CHUNK_ELEMENTS // max(1, logits[:1].numel()))
    for start in range(0, len(logits), step):
        yield slice(start, start + step)


def caption_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    count: Tensor | int | None = None,
    ignore: int = 0,
    ranks: int = 1,
    mean: Literal["all", "rank"] = "all",
) -> Tensor:
    """Returns the mean cross entropy of the tokens of all ranks, a float32 scalar that is the same on every rank.

    `logits`: [B, L, V] of any floating-point dtype; `labels`: int64 [B, L], the token that each position predicts.
    Positions whose label is `ignore` do not count. Logits become float32 in chunks of captions and are recomputed in
    the backward pass, so nothing of their size is kept besides them. To train without a copy of a slice, give the
    logits of all positions, the last one with the label `ignore`.

    `count`: tokens that count, of all ranks and of all micro-batches of a step; by default those of this call on all
    ranks. The losses of micro-batches add up to that of the batch. `mean` = rank takes the mean of each rank's mean,
    as OpenCLIP does, in which a caption on a rank with short ones weighs more; `count` is then that of this rank.
    Averaging the parameter gradients over the ranks gives the gradient of this loss.
    """
    if logits.shape[:-1] != labels.shape:
        raise ValueError(f"logits are {list(logits.shape)}, labels {list(labels.shape)}: labels need one per position")
    if mean not in ("all", "rank"):
        raise ValueError(f"mean is {mean!r}: choose all or rank")
    if count is None:
        count = (labels != ignore).sum()
        count = count if mean == "rank" else Exchange(ranks).sum(count)
    tokens = torch.as_tensor(count, device=logits.device).clamp(min=1)
    weight = (tokens if mean == "all" else tokens * ranks).double().reciprocal()
    with torch.autocast(logits.device.type, enabled=False):
        loss: Tensor = _Caption.apply(logits, labels, ignore, weight, ranks)
        return loss
