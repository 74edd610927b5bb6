"""The training loop. A task computes the losses; logging, validation and checkpoints are hooks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

from clip_train.errors import ClipTrainError
from clip_train.gradients import Gradients
from clip_train.optim.clip import Clip
from clip_train.optim.guard import Guard, update
from clip_train.tasks.base import Task


@dataclass(frozen=True, kw_only=True)
class Step:
    """The results of an optimizer step, for hooks."""

    step: int
    """number of steps done, including this one"""
    losses: dict[str, float]
    lr: float
    grad_norm: float
    """global norm before clipping"""
    wait_s: float
    """seconds of waiting for the batch"""
    seconds: float
    """seconds of the whole step, including the wait"""
    norms: dict[str, float] = field(default_factory=dict)
    """gradient norm of each tower before clipping, as `grad_norm_image`"""
    skipped: bool = False
    """whether the update was left out, as `optim.spike` says"""


class Hook:
    """A feature of training. Hooks are called in the order of the list, on every rank."""

    def on_start(self, loop: Loop) -> None:
        """Called before the first step of this process."""

    def on_step(self, loop: Loop, step: Step) -> None:
        """Called after each optimizer step."""

    def on_end(self, loop: Loop) -> None:
        """Called after the last step, or when an error or a signal ends the loop."""


@dataclass(kw_only=True)
class Loop:
    """Runs `task` from step `start` to step `steps` over an endless iterator of batches."""

    task: Task
    gradients: Gradients
    optimizer: torch.optim.Optimizer
    clip: Clip
    guard: Guard
    batches: Iterator[Mapping[str, Any]]
    rate: Callable[[int], float]
    """learning rate as a function of the step, from 0"""
    steps: int
    start: int = 0
    hooks: Sequence[Hook] = ()
    collective: Callable[[], AbstractContextManager[Any]] = nullcontext
    """context for the part of a step that communicates between ranks"""
    metrics: dict[str, float] = field(default_factory=dict)
    """latest measured values; saved in the checkpoints"""

    def run(self) -> None:
        """Runs all steps. Raises ClipTrainError, before the weights change, if the loss or a gradient is not finite."""
        self.task.model.train()
        try:
            for hook in self.hooks:
                hook.on_start(self)
            for number in range(self.start, self.steps):
                step = self._step(number)
                self.metrics["loss"] = step.losses["loss"]
                self.metrics["skipped"] = self.metrics.get("skipped", 0) + step.skipped
                for hook in self.hooks:
                    hook.on_step(self, step)
        finally:
            for hook in self.hooks:
                hook.on_end(self)

    def _check_gradients(self) -> None:
        """Raises ClipTrainError if the loss does not depend on every trainable parameter."""
        named = self.task.model.named_parameters()
        idle = [name for name, parameter in named if parameter.requires_grad and parameter.grad is None]
        if idle:
            raise ClipTrainError(
                f"{len(idle)} parameters of the model get no gradient from this task and would not be trained "
                f"({', '.join(idle[:3])}{', …' if len(idle) > 3 else ''}): choose a task that trains the whole model"
            )

    def _step(self, number: int) -> Step:
        asked = time.perf_counter()
        batch = next(self.batches)
        wait = time.perf_counter() - asked
        lr = self.rate(number)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("rate", 1.0)
        with self.collective():
            losses = self.gradients.backward(self.task.prepare(batch), number)
            if number == self.start:
                self._check_gradients()
            norms = self.clip.norms()
            good = self.guard.judge(losses["loss"], norms["grad_norm"])
            values = {name: float(loss) for name, loss in losses.items()}
            read = {name: float(norm) for name, norm in norms.items()}
        grad_norm, skipped = read.pop("grad_norm"), not bool(good)
        if skipped:
            self.guard.refuse(number + 1, values["loss"], grad_norm, lr)
        self.clip.apply(norms)
        update(self.optimizer, good)
        self.optimizer.zero_grad(set_to_none=True)
        self.task.after_step()
        return Step(
            step=number + 1,
            losses=values,
            lr=lr,
            grad_norm=grad_norm,
            norms=read,
            skipped=skipped,
            wait_s=wait,
            seconds=time.perf_counter() - asked,
        )
