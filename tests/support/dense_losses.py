"""The losses of clip_train as their formulas stand in the papers: whole matrices, one process, any dtype."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def relative_error(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


def features(
    samples: int, channels: int = 16, seed: int = 0, noise: float = 1.0, common: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Normalised float32 features of pairs that agree but for `noise`, with a part that is `common` to all samples."""
    generator = torch.Generator().manual_seed(seed)
    image, text = torch.randn(2, samples, channels, generator=generator)
    text += common * torch.randn(channels, generator=generator)
    return F.normalize(noise * image + text, dim=-1), F.normalize(text, dim=-1)


def positives(groups: Tensor | None, samples: int) -> Tensor:
    """Bool [N, N]: itself, and samples of the same non-negative group."""
    own = torch.eye(samples, dtype=torch.bool)
    return own if groups is None else own | ((groups[:, None] == groups) & (groups >= 0))


def contrastive(
    image: Tensor, text: Tensor, scale: Tensor, *, groups: Tensor | None = None, label_smoothing: float = 0
) -> Tensor:
    logits = scale * image @ text.T
    target = positives(groups, len(image)).to(logits.dtype)
    target = (1 - label_smoothing) * target / target.sum(1, keepdim=True) + label_smoothing / len(image)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def sigmoid(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor, *, groups: Tensor | None = None) -> Tensor:
    sign = 2 * positives(groups, len(image)).to(image.dtype) - 1
    return -F.logsigmoid(sign * (scale * image @ text.T + bias)).sum() / len(image)


def distillation(
    image: Tensor, text: Tensor, scale: Tensor, teacher: tuple[Tensor, Tensor, Tensor], temperature: float = 1.0
) -> Tensor:
    student = scale * image @ text.T / temperature
    wanted = teacher[2] * teacher[0] @ teacher[1].T / temperature
    entropies = (F.cross_entropy(s, r.softmax(1)) for s, r in ((student, wanted), (student.T, wanted.T)))
    return temperature**2 * sum(entropies) / 2


def caption(logits: Tensor, labels: Tensor, ignore: int) -> Tensor:
    return F.cross_entropy(logits.flatten(0, -2), labels.flatten(), ignore_index=ignore)


def matryoshka(image: Tensor, text: Tensor, scale: Tensor, dims: tuple[int, ...], weights: tuple[float, ...]) -> Tensor:
    cut = ([F.normalize(features[:, :d], dim=-1) for features in (image, text)] for d in dims)
    return sum(w * contrastive(*pair, scale) for w, pair in zip(weights, cut, strict=True)) / sum(weights)


def global_contrastive(
    image: Tensor, text: Tensor, tau: Tensor, u: Tensor, *, gamma: float, eps: float, rho: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The estimate of FastCLIP from u, [2, N], 0 for a sample that was never seen, and temperatures [2, N].

    Returns (a scalar whose gradient is the estimate of the gradient, the estimate of the loss, the new u).
    """
    cosines, others = image @ text.T, ~torch.eye(len(image), dtype=torch.bool)
    own = cosines.diagonal()
    exponents = (cosines - own[:, None]) / tau[0, :, None], (cosines - own).T / tau[1, :, None]
    g = torch.stack([(each.exp() * others).sum(1) / (len(image) - 1) for each in exponents])
    new = torch.where(u == 0, g, (1 - gamma) * u + gamma * g).detach()
    level = (eps + new).log() + rho
    return (tau.detach() * g / (eps + new) + tau * level).mean(), (tau * level).mean(), new
