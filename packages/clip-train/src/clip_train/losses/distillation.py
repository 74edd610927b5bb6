"""Distillation of the similarities of a teacher (as in Wu et al. 2023, TinyCLIP, and Hinton et al. 2015).

Shapes: B samples of this rank, W ranks, N = W·B samples in all, D channels of the student, E of the teacher, t columns
of a tile.

    loss = T²/(2N) · Σ_i [ H(softmax_j R_ij, softmax_j S_ij) + H(softmax_j R_ji, softmax_j S_ji) ]

H is the cross entropy, S the student's similarities over the temperature T, and R the teacher's. Both are computed by
tiles of columns; sums over columns are combined from the ranks' parts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from clip_train.losses.exchange import Exchange
from clip_train.losses.tiles import ExpSum, Similarities, WeightedSum, own_loss, two_softmaxes


@dataclass(frozen=True)
class _Side:
    """The similarities of the student or of the teacher, and what is known of their softmaxes."""

    similarities: Similarities
    rows: ExpSum
    columns: ExpSum
    own_slope_B: Tensor
    """[B]: one minus the own softmax over the row, plus the same of the column"""

    @classmethod
    def of(cls, similarities: Similarities, rows: ExpSum, columns: ExpSum, own_B: Tensor, exchange: Exchange) -> _Side:
        """`rows` and `columns`: sums of all ranks without the own pairs."""
        own_columns = columns[similarities.first : similarities.first + len(own_B)]
        slope_B = rows.log_over(own_B).sigmoid() + own_columns.log_over(own_B).sigmoid()
        return cls(similarities, rows.with_own(own_B), columns.with_own(exchange.gather(own_B)), slope_B)

    def softmaxes(self, part: slice) -> Tensor:
        """Returns a tile of the softmax over rows plus that over columns, the own pairs left out as zero."""
        return two_softmaxes(self.similarities.tile(part, -torch.inf), self.rows, self.columns[part])


def _similarities(x_BD: Tensor, y_BD: Tensor, scale: Tensor, exchange: Exchange, tile: int | None) -> Similarities:
    return Similarities(scale * x_BD, exchange.gather(y_BD), exchange.rank * len(x_BD), tile)


def _sums(
    student: Similarities, teacher: Similarities, own_B: Tensor, exchange: Exchange
) -> tuple[ExpSum, ExpSum, WeightedSum, WeightedSum]:
    """Returns the student's and the teacher's sums over rows, [B], and columns, [N]; `own_B`: of the student."""
    rows, columns = ExpSum.empty(len(own_B), own_B.device), []
    means, column_means = WeightedSum(rows, torch.zeros_like(own_B)), []
    own_N = exchange.gather(own_B)
    for part in student.parts():
        r_Bt, s_Bt = teacher.tile(part, -torch.inf), student.tile(part, own_B)
        means += WeightedSum.over(r_Bt, s_Bt - own_B[:, None], 1)
        column_means.append(WeightedSum.over(r_Bt, s_Bt - own_N[part], 0))
        student.set_own(s_Bt, part, -torch.inf)
        rows += ExpSum.over(s_Bt, 1)
        columns.append(ExpSum.over(s_Bt, 0))
    return rows, ExpSum.cat(columns).over_ranks(exchange), means, WeightedSum.cat(column_means).over_ranks(exchange)


class _Distillation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_BD: Tensor, y_BD: Tensor, scale: Tensor, teacher: tuple[Tensor, Tensor, Tensor],
        exchange: Exchange, temperature: float, tile: int | None,
    ) -> Tensor:  # fmt: skip
        u_BE, v_BE, teacher_scale = teacher
        own_B = scale / temperature * (x_BD * y_BD).sum(1)
        teacher_own_B = teacher_scale / temperature * (u_BE * v_BE).sum(1)
        s = _similarities(x_BD, y_BD, scale / temperature, exchange, tile)
        r = _similarities(u_BE, v_BE, teacher_scale / temperature, exchange, tile)
        rows, columns, means, column_means = _sums(s, r, own_B, exchange)
        own = slice(s.first, s.first + len(own_B))
        loss_B = own_loss(rows.log_over(own_B)) - means.mean(teacher_own_B)
        loss_B += own_loss(columns[own].log_over(own_B)) - column_means[own].mean(teacher_own_B)
        ctx.student = _Side.of(s, rows, columns, own_B, exchange)
        ctx.teacher = _Side.of(r, means.sums, column_means.sums, teacher_own_B, exchange)
        ctx.save_for_backward(x_BD, scale)
        ctx.exchange, ctx.temperature = exchange, temperature
        return exchange.mean_of_samples(loss_B * temperature**2 / 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x_BD, scale = ctx.saved_tensors
        student, teacher = ctx.student, ctx.teacher

        def coefficients(part: slice) -> Tensor:
            p_Bt: Tensor = student.softmaxes(part).sub_(teacher.softmaxes(part))
            student.similarities.set_own(p_Bt, part, teacher.own_slope_B - student.own_slope_B)
            return p_Bt

        with torch.autocast(x_BD.device.type, enabled=False):
            grad_x_BD, grad_y_ND = student.similarities.products(x_BD, coefficients)
            grad_y_BD = ctx.exchange.scatter(grad_y_ND)
            # T² of the loss and 1/T of S; times the ranks, because the gradients of the parameters are averaged over
            # them afterwards.
            share = grad * (ctx.exchange.ranks * ctx.temperature / (2 * len(grad_y_ND)))
            grad_scale = share * (grad_x_BD * x_BD).sum()
            return share * scale * grad_x_BD, share * scale * grad_y_BD, grad_scale, None, None, None, None


def distillation_loss(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    teacher_image: Tensor,
    teacher_text: Tensor,
    teacher_scale: Tensor,
    *,
    ranks: int = 1,
    temperature: float = 1.0,
    tile: int | None = None,
) -> Tensor:
    """Returns the mean cross entropy of the teacher's similarities and the student's, of images and of captions.

    `image`, `text`: the student's features, [B, D], L2-normalised; `teacher_image`, `teacher_text`: the teacher's,
    [B, E]; B is the same on every rank. `scale`, `teacher_scale`: the exponentiated logit scales, scalars. The teacher
    gets no gradient. The result is a float32 scalar, the same on every rank, computed in float32 also under autocast.
    Averaging the parameter gradients over the ranks gives the gradient of this loss.

    `temperature` divides the similarities of both and multiplies the loss by its square, so that gradients keep their
    size (Hinton et al. 2015); with 1 this is the distillation loss of OpenCLIP. `tile`: columns of the similarities
    that are held at a time.
    """
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}: give a positive number")
    with torch.autocast(image.device.type, enabled=False):
        student = image.float(), text.float(), scale.float()
        teacher = tuple(tensor.detach().float() for tensor in (teacher_image, teacher_text, teacher_scale))
        loss: Tensor = _Distillation.apply(*student, teacher, Exchange(ranks), temperature, tile)
        return loss
