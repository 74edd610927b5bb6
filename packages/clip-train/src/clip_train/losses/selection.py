"""Which of `products.PRODUCTS` is the fastest on a device, and how right the gradients are with each."""

from __future__ import annotations

import time

import torch
import torch.nn.functional as F

from clip_train.losses.contrastive import contrastive_loss
from clip_train.losses.products import PRODUCTS, computed_by, mm

ERROR = 1e-5  # largest relative error of a gradient
_TURNS = 5
_ROWS, _COLUMNS = 512, 8192  # of a tile
_SCALE, _NOISE = 100.0, 4.0  # the largest scale of the logits, and pairs that are not yet told apart well


def fastest(width: int, device: torch.device) -> str:
    """Returns the name of the fastest product on a device with which gradients of the contrastive loss keep ERROR.

    `width`: channels of the features. Both are measured, on random features.
    """
    seconds = {name: _seconds(name, width, device) for name in PRODUCTS}
    for name in sorted(seconds, key=seconds.__getitem__):
        if name == "torch" or gradient_error(name, width, device) < ERROR:
            return name
    raise AssertionError("PRODUCTS has torch")


def gradient_error(name: str, width: int, device: torch.device) -> float:
    """Returns the relative error of the gradient of the contrastive loss with a product, against float64."""
    generator = torch.Generator().manual_seed(0)  # the run's own generator must not move
    text = torch.randn(_ROWS, width, generator=generator)
    image = text + _NOISE * torch.randn(_ROWS, width, generator=generator)
    features = [F.normalize(x).to(device).requires_grad_() for x in (image, text)]
    exact = [x.detach().double().requires_grad_() for x in features]
    scale = torch.tensor(_SCALE, device=device)
    logits = scale.double() * exact[0] @ exact[1].T
    labels = torch.arange(_ROWS, device=device)
    loss = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
    wanted = torch.cat(torch.autograd.grad(loss, exact))
    with computed_by(name):
        found = torch.cat(torch.autograd.grad(contrastive_loss(features[0], features[1], scale), features))
    return float((found.double() - wanted).norm() / wanted.norm())


def _seconds(name: str, width: int, device: torch.device) -> float:
    """Measures the three products of a tile."""
    x, y = (torch.ones(rows, width, device=device) for rows in (_ROWS, _COLUMNS))
    p = torch.ones(_ROWS, _COLUMNS, device=device)
    best = float("inf")
    with computed_by(name):
        for _ in range(_TURNS):
            start = time.perf_counter()
            mm(x, y.T), mm(p, y), mm(p.T, x)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            best = min(best, time.perf_counter() - start)
    return best
