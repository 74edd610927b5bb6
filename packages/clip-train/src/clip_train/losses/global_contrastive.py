"""The contrastive loss over the whole data set, from small batches (SogCLR, iSogCLR, FastCLIP v1 to v3).

Sources: Yuan et al. 2022 (arXiv 2202.12387), Qiu et al. 2023 (arXiv 2305.11965), Wei et al. 2024 (arXiv 2407.01445).
Shapes: B pairs of this rank, W ranks, N = W·B pairs in all, D channels, t columns of a tile; 2: images, captions.

Sample i has a normaliser for its image and one for its caption, means over all other samples j of the data set:

    g_i = mean_j exp((x_i·y_j − x_i·y_i) / τ_i),   h_i = mean_j exp((x_j·y_i − x_i·y_i) / κ_i)

    loss = 1/2 · mean_i [ τ_i (log(ε + g_i) + ρ) + κ_i (log(ε + h_i) + ρ) ]

A batch gives estimates of g and h. u_i ← (1 − γ) u_i + γ g_i averages those of the steps in which sample i was seen
(the first one is taken as it is), and takes the place of g_i in the loss and in the denominators of its gradient; the
numerators are those of the batch. The global temperature τ = κ has the gradient ρ + mean_i [log(ε + u_i) + …]/2 plus
that through g; individual ones get τ_i ← τ_i − η v_i from the gradients of their own terms. All of it is kept as
logarithms: exp(1/τ) has no place in float32 below a temperature of 0.012.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from clip_train.losses.exchange import Exchange
from clip_train.losses.tiles import ExpSum, Similarities, WeightedSum

NEVER = -math.inf
"""Logarithm of the normaliser of a sample that was not seen yet."""


class GlobalContrastive(NamedTuple):
    """What a step gives."""

    loss: Tensor
    """float32 scalar, the same on every rank"""
    log_u_2N: Tensor
    """the new logarithms of the normalisers of all samples of the batch"""
    slope_2N: Tensor | None
    """the gradients of the samples' own terms with respect to their temperatures, if these are individual"""


@dataclass(frozen=True)
class _Options:
    exchange: Exchange
    gamma: float
    eps: float
    rho: float
    tile: int | None


@dataclass
class _Pairs:
    """Cosines less the own ones, over the temperatures, by tiles of columns."""

    cosines: Similarities
    own_N: Tensor
    inverse_2N: Tensor

    @property
    def rows(self) -> slice:
        return slice(self.cosines.first, self.cosines.first + len(self.cosines.x_BD))

    def tile(self, part: slice, own: float) -> tuple[Tensor, Tensor]:
        """Returns the exponents of the images and of the captions, [B, t] each, with `own` at the own pairs."""
        c_Bt = self.cosines.tile(part, 0.0)
        image = (c_Bt - self.own_N[self.rows, None]).mul_(self.inverse_2N[0, self.rows, None])
        text = c_Bt.sub_(self.own_N[part]).mul_(self.inverse_2N[1, part])
        for each in (image, text):
            self.cosines.set_own(each, part, own)
        return image, text

    def sums(self, exchange: Exchange) -> Tensor:
        """Returns the logarithms of Σ_j exp, [2, N]."""
        rows, columns = ExpSum.empty(len(self.cosines.x_BD), self.own_N.device), []
        for part in self.cosines.parts():
            image, text = self.tile(part, -torch.inf)
            rows += ExpSum.over(image, 1)
            columns.append(ExpSum.over(text, 0))
        whole = ExpSum.cat(columns).over_ranks(exchange)
        return torch.stack([exchange.gather(rows.top + rows.total.log()), whole.top + whole.total.log()])

    def mean_exponents(self, exchange: Exchange) -> tuple[Tensor, Tensor]:
        """Returns (the logarithms of Σ_j exp, the means of the exponents under these weights), [2, N] each."""
        empty = ExpSum.empty(len(self.cosines.x_BD), self.own_N.device)
        rows, columns = WeightedSum(empty, torch.zeros_like(empty.total)), []
        for part in self.cosines.parts():
            both = zip(self.tile(part, -torch.inf), self.tile(part, 0.0), strict=True)
            image, text = (WeightedSum.over(r, s, dim) for dim, (r, s) in zip((1, 0), both, strict=True))
            rows += image
            columns.append(text)
        whole = WeightedSum.cat(columns).over_ranks(exchange)
        logs = [exchange.gather(rows.sums.top + rows.sums.total.log()), whole.sums.top + whole.sums.total.log()]
        means = [exchange.gather(rows.product / rows.sums.total), whole.product / whole.sums.total]
        return torch.stack(logs), torch.stack(means)


class _GlobalContrastive(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_BD: Tensor, y_BD: Tensor, scale: Tensor, log_u_2N: Tensor, tau_2N: Tensor | None, options: _Options
    ) -> tuple[Tensor, ...]:
        exchange = options.exchange
        own_N, y_ND = exchange.gather((x_BD * y_BD).sum(1)), exchange.gather(y_BD)
        tau = scale.reciprocal().expand(2, len(own_N)) if tau_2N is None else tau_2N
        pairs = _Pairs(Similarities(x_BD, y_ND, exchange.rank * len(x_BD), options.tile), own_N, tau.reciprocal())
        if tau_2N is None:
            sums, means = pairs.sums(exchange), None
        else:
            sums, means = pairs.mean_exponents(exchange)
        log_g = sums - math.log(len(own_N) - 1)
        new = _averaged(log_u_2N, log_g, options.gamma)
        log_all = torch.logaddexp(new, torch.full_like(new, math.log(options.eps)))
        weight = (log_g - log_all).exp()
        ctx.pairs, ctx.options, ctx.is_global = pairs, options, tau_2N is None
        ctx.save_for_backward(x_BD, log_all + math.log(len(own_N) - 1), weight.sum(0), scale)
        terms = log_all + options.rho
        ctx.level = terms.double().mean().float()
        slope = torch.empty(0) if means is None else terms - weight * means
        ctx.mark_non_differentiable(new, slope)
        return (tau * terms).double().mean().float(), new, slope

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        x_BD, log_whole_2N, weight_N, scale = ctx.saved_tensors
        pairs, exchange = ctx.pairs, ctx.options.exchange

        def coefficients(part: slice) -> Tensor:
            image, text = pairs.tile(part, -torch.inf)
            p_Bt: Tensor = image.sub_(log_whole_2N[0, pairs.rows, None]).exp_()
            p_Bt += text.sub_(log_whole_2N[1, part]).exp_()
            pairs.cosines.set_own(p_Bt, part, -weight_N[pairs.rows])
            return p_Bt

        with torch.autocast(x_BD.device.type, enabled=False):
            grad_x_BD, grad_y_ND = pairs.cosines.products(x_BD, coefficients)
            grad_y_BD = exchange.scatter(grad_y_ND)
            # Multiplied by the ranks, because the gradients of the parameters are averaged over them afterwards.
            share = grad * (exchange.ranks / (2 * len(grad_y_ND)))
            grad_scale = None
            if ctx.is_global:
                # d τ / d scale = −τ². The exponents are products of the scale and cosines, whose sum is that of P.
                grad_scale = share * (grad_x_BD * x_BD).sum() / scale - grad * ctx.level / scale.square()
            return share * grad_x_BD, share * grad_y_BD, grad_scale, None, None, None


def _averaged(log_u: Tensor, log_g: Tensor, gamma: float) -> Tensor:
    """Returns log((1 − γ) u + γ g), and log g of a sample that was never seen."""
    if gamma >= 1:
        return log_g
    both = torch.logaddexp(log_u + math.log1p(-gamma), log_g + math.log(gamma))
    return torch.where(log_u == NEVER, log_g, both)


def global_contrastive_loss(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    log_u: Tensor,
    temperatures: Tensor | None = None,
    *,
    gamma: float,
    eps: float = 1e-14,
    rho: float = 0.0,
    ranks: int = 1,
    tile: int | None = None,
) -> GlobalContrastive:
    """Returns the loss and the new state of the samples of a batch, of all ranks.

    `image`, `text`: [B, D], L2-normalised; B is the same on every rank. `log_u`: float32 [2, N], the logarithms of the
    normalisers of all samples in rank order, with `NEVER` for one that was not seen yet; the same on every rank.
    `scale`: the inverse of the global temperature, a scalar; or individual `temperatures`, float32 [2, N], in place of
    it. `gamma`: share of the batch in the new normalisers, in (0, 1]; with 1 the loss is that of the batch alone.
    `eps`: added to the normalisers. `rho`: weight of the temperature itself, without which it grows.

    Averaging the parameter gradients over the ranks gives the gradient of one process on the whole batch. With `ranks`
    = 1 nothing is exchanged. Computed in float32, also under autocast. Raises ValueError for a value out of its range
    and a batch of one pair.
    """
    if not 0 < gamma <= 1 or eps <= 0 or rho < 0:
        raise ValueError(f"gamma is {gamma}, eps {eps}, rho {rho}: give gamma in (0, 1], eps above 0 and rho from 0")
    if ranks * len(image) < 2:
        raise ValueError("a batch of one pair has no other sample to compare with: give two or more")
    options = _Options(Exchange(ranks), gamma, eps, rho, tile)
    with torch.autocast(image.device.type, enabled=False):
        loss, new, slope = _GlobalContrastive.apply(
            image.float(), text.float(), scale.float(), log_u, temperatures, options
        )
    return GlobalContrastive(loss, new, None if temperatures is None else slope)
