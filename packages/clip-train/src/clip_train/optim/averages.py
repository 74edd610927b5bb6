"""Averaged weights: the moving average that follows training, and the weights of schedule-free optimizers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from clip_models.weights.convert.prefixes import strip_marks
from clip_train.optim.config import EmaConfig
from clip_train.parallelize.shards import local


class Ema:
    """An exponential moving average of the trainable parameters, in float32 on their devices.

    Of sharded parameters each rank averages its shards, without communication. Buffers, such as the statistics of
    batch norms, are not averaged.
    """

    def __init__(self, model: nn.Module, config: EmaConfig) -> None:
        named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        self._config = config
        self._weights = [local(parameter.detach()) for parameter in named.values()]
        self._state = {
            strip_marks(name): parameter.detach().to(torch.float32, copy=True) for name, parameter in named.items()
        }
        self._averages = [local(average) for average in self._state.values()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Moves the average towards the weights after `step` steps, if an update is due."""
        every = self._config.every
        if step % every:
            return
        decay = self._config.decay
        if self._config.warmup:
            decay = min(decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._averages, [weight.float() for weight in self._weights], 1 - decay**every)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Has the averages in place of the weights, for evaluation and export, and restores the weights' bits."""
        with _restored(self._weights):
            for weight, average in zip(self._weights, self._averages, strict=True):
                weight.copy_(average)
            yield

    def state(self) -> dict[str, Tensor]:
        """Returns the averages by the plain names of the parameters, float32, sharded like the parameters."""
        return dict(self._state)

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Restores what `state` returned."""
        for name, average in self._state.items():
            average.copy_(tensors[name])

    @torch.no_grad()
    def begin(self) -> None:
        """Starts again at the weights."""
        for average, weight in zip(self._averages, self._weights, strict=True):
            average.copy_(weight)


@contextmanager
def evaluation_weights(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Has the weights that the optimizer would evaluate in place of those that it trains, if they differ.

    They differ for schedule-free optimizers (Defazio et al. 2024, arXiv 2405.15682). The weights of training come back
    to the bit, which the optimizer's own switch does not do.
    """
    switch: Any = optimizer
    if not hasattr(optimizer, "eval"):
        yield
        return
    with _restored(local(parameter.detach()) for group in optimizer.param_groups for parameter in group["params"]):
        switch.eval()
        try:
            yield
        finally:
            switch.train()


@contextmanager
def _restored(weights: Iterable[Tensor]) -> Iterator[None]:
    """Restores the values of tensors at the end of the block."""
    kept = [(weight, weight.clone()) for weight in weights]
    try:
        yield
    finally:
        for weight, values in kept:
            weight.copy_(values)
