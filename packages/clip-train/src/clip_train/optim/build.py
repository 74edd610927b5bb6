"""Builds the optimizer and the learning rate of a config."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from clip_train.errors import ClipTrainError
from clip_train.optim import KNOWN, OPTIMIZERS, SCHEDULES
from clip_train.optim.averages import Ema, evaluation_weights
from clip_train.optim.clip import Clip
from clip_train.optim.config import OptimConfig, check_options
from clip_train.optim.groups import parameter_groups
from clip_train.optim.guard import Guard
from clip_train.optim.plan import Plan
from clip_train.optim.schedules import SHAPES
from clip_train.parallelize.precision import LossScale, ScaledGuard


class Optimization:
    """What a run does with a gradient: the optimizer, clipping, the guard, and the moving average if there is one.

    `scale`: the factor on the loss in fp16, from `Gradients`.
    """

    def __init__(
        self, model: nn.Module, config: OptimConfig, device: torch.device, scale: LossScale | None = None
    ) -> None:
        self.optimizer = make_optimizer(model, config)
        self.clip = Clip(model, config)
        self.guard = Guard(config.spike, device) if scale is None else ScaledGuard(config.spike, device, scale)
        self.ema = Ema(model, config.ema) if config.ema.decay else None
        self.parts: dict[str, Any] = {"spike": self.guard} if config.spike.action != "off" else {}
        """what checkpoints save beside the optimizer, by name"""
        if scale is not None:
            self.parts["loss_scale"] = scale
        self.weights: dict[str, Callable[[], AbstractContextManager[None]]] = {
            "val_loss": partial(evaluation_weights, self.optimizer)
        }
        """what is validated and exported: by the name of its loss, a context that has the weights in the model"""
        if self.ema:
            self.parts["ema"] = self.ema
            self.weights["val_loss_ema"] = self.ema.swapped


def make_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """Builds the optimizer over the trainable parameters, in groups (see `parameter_groups`), ready for its first step.

    Raises ClipTrainError for an option that the optimizer does not have, and for a library that is not installed.
    """
    try:
        target: Any = OPTIMIZERS.get(config.name)
    except ModuleNotFoundError as error:
        raise ClipTrainError(
            f"optim.name = {config.name!r} needs {error.name}, which is not installed; "
            "pip install 'clip-train[optimizers]'"
        ) from error
    groups = parameter_groups(model, config)
    replaced = _of_shards(config.name, model)
    if isinstance(target, type):
        keywords = {**_keywords(target, config), **replaced}
        try:
            optimizer: torch.optim.Optimizer = target(groups, **keywords)
        except (TypeError, ValueError, AssertionError) as error:
            given = ", ".join(f"{name} = {value!r}" for name, value in keywords.items())
            raise ClipTrainError(f"optim.name = {config.name!r} does not accept {given}: {error}") from error
    else:
        optimizer = target(groups, config)
    if hasattr(optimizer, "train"):
        optimizer.train()  # schedule-free: the weights of training, not the averaged ones
    return optimizer


def _of_shards(name: str, model: nn.Module) -> Mapping[str, Any]:
    """Returns the keyword arguments that an optimizer needs for sharded weights. Raises ClipTrainError if none help."""
    known = KNOWN.get(name)
    if known is None or not any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        return {}
    if known.sharded is None:
        raise ClipTrainError(
            f"optim.name = {name!r} needs whole tensors, and the weights are sharded: choose adamw, or "
            "train.parallel = 'ddp'"
        )
    return known.sharded


def _keywords(target: type, config: OptimConfig) -> dict[str, Any]:
    """Returns the keyword arguments of an optimizer class, beside the groups."""
    known = KNOWN.get(config.name)
    accepted = inspect.signature(target).parameters
    takes = known.takes if known else ("betas", "eps")
    if known is None and all(each.kind is not each.VAR_KEYWORD for each in accepted.values()):
        check_options(config, [name for name in accepted if name not in ("params", "lr", "weight_decay")])
    given = {name: getattr(config, name) for name in ("lr", *takes) if name in accepted}
    return {**given, **(known.fixed if known else {}), **config.options}


def learning_rate(config: OptimConfig, plan: Plan, batch_size: int) -> Callable[[int], float]:
    """Returns the rate as a function of the optimizer step, from 0. A step has `batch_size` samples.

    The rate is a function of samples, so runs with other batch sizes have the same: in the warm-up of the samples
    after the step, so that the first step is not lost; then of the samples before it, so that the last is not.
    """
    schedule, shape = SCHEDULES.get(config.schedule), SHAPES[config.cooldown_shape]

    def rate(step: int) -> float:
        seen = step * batch_size
        if seen < plan.warmup:
            return config.lr * min(seen + batch_size, plan.warmup) / plan.warmup
        share = schedule(seen - plan.warmup, plan)
        left = plan.total - seen
        if left < plan.cooldown:
            share = plan.final + (share - plan.final) * shape(1 - left / plan.cooldown, config.cooldown_power)
        return config.lr * share

    return rate
