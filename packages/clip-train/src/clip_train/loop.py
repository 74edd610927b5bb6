"""The training loop. A task computes the losses; logging, validation and checkpoints are hooks.

The host launches steps and never waits for the one that it has just launched: it reads the values of a step after it
has launched `LAG` further ones. What must not reach the weights is therefore left out on the device (`Guard`). At the
steps of hooks that need the state as it is (`Hook.exact`), all values are read first.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from clip_train.errors import ClipTrainError
from clip_train.feed import Fed, Feed
from clip_train.gradients import Gradients
from clip_train.optim.clip import Clip
from clip_train.optim.guard import Guard, update
from clip_train.readback import Readback
from clip_train.tasks.base import Task

LAG = 2  # steps that the device has to do when the host reads a value: it does not run dry while hooks work


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
    """seconds of waiting for a batch"""
    seconds: float
    """seconds of the whole step, including the wait, without hooks"""
    norms: dict[str, float] = field(default_factory=dict)
    """gradient norm of each tower before clipping, as `grad_norm_image`"""
    measured: dict[str, float] = field(default_factory=dict)
    """what hooks have measured on the device (`Hook.on_update`)"""
    skipped: bool = False
    """whether the update was left out, as `optim.spike` says"""
    tokens: int = 0
    """tokens of this rank's captions, without padding"""
    columns: int = 0
    """tokens that each caption was padded to"""
    counts: Mapping[str, float] = field(default_factory=dict)
    """counts of this rank's stream, up to the batch of the step"""


class Hook:
    """A feature of training. Hooks are called in the order of the list, on every rank."""

    def on_start(self, loop: Loop) -> None:
        """Called before the first step of this process."""

    def on_update(self, loop: Loop, step: int) -> Mapping[str, Tensor]:
        """Called when `step` steps have been launched; the device may not have done them yet.

        Returns scalars on the device, which come back as `Step.measured`. Must not wait for the device.
        """
        return {}

    def exact(self, loop: Loop, step: int) -> bool:
        """Returns whether `on_step` has to find the model, optimizer and stream as they are after `step` steps."""
        return False

    def on_step(self, loop: Loop, step: Step) -> None:
        """Called after each optimizer step, in order, when its values have been read; see `exact`."""

    def on_stop(self, loop: Loop, step: int) -> None:
        """Called after `step` steps, with the state as it is then, when a rank has been told to stop."""

    def on_end(self, loop: Loop) -> None:
        """Called after the last step, or when an error or a signal ends the loop."""


@dataclass(kw_only=True)
class _Launched:
    """A step that the host has launched."""

    number: int
    lr: float
    losses: list[str]
    norms: list[str]
    values: Readback
    tokens: int
    columns: int
    counts: Mapping[str, float]
    wait_s: float
    seconds: float = 0.0


@dataclass(kw_only=True)
class Loop:
    """Runs `task` from step `start` to step `steps`."""

    task: Task
    gradients: Gradients
    optimizer: torch.optim.Optimizer
    clip: Clip
    guard: Guard
    feed: Feed
    rate: Callable[[int], float]
    """learning rate as a function of the step, from 0"""
    steps: int
    start: int = 0
    hooks: Sequence[Hook] = ()
    collective: Callable[[], AbstractContextManager[Any]] = nullcontext
    """context for the part of a step that communicates between ranks"""
    metrics: dict[str, float] = field(default_factory=dict)
    """latest measured values; saved in the checkpoints"""
    stream_state: dict[str, Any] = field(default_factory=dict)
    """state of the stream after the batches that have been used"""
    _launched: deque[_Launched] = field(default_factory=deque)

    def run(self) -> None:
        """Runs all steps. Raises ClipTrainError if a loss or a gradient is not finite; the weights then stay as they
        were before that step."""
        self.task.model.train()
        try:
            for hook in self.hooks:
                hook.on_start(self)
            for number in range(self.start, self.steps):
                began = time.perf_counter()
                fed = self.feed.take(last=number + 1 == self.steps)
                if fed.stopping and number > self.start:
                    self._report(began, 0)
                    for hook in self.hooks:
                        hook.on_stop(self, number)
                self._launched.append(self._launch(number, fed))
                exact = number + 1 == self.steps or any(hook.exact(self, number + 1) for hook in self.hooks)
                self._report(began, 0 if exact else LAG)
        finally:
            for hook in self.hooks:
                hook.on_end(self)

    def _launch(self, number: int, fed: Fed) -> _Launched:
        """Gives the device a whole step to do."""
        lr = self.rate(number)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("rate", 1.0)
        with self.collective():
            losses = self.gradients.backward(fed.batch, number)
            if number == self.start:
                self._check_gradients()
            norms = self.clip.norms()
            good = self.guard.judge(losses["loss"], norms["grad_norm"])
            self.clip.apply(norms)
            update(self.optimizer, good)
        self.optimizer.zero_grad(set_to_none=True)
        self.task.after_step()
        self.stream_state = fed.state
        scalars = {**losses, **norms, **self.guard.verdict()}
        for hook in self.hooks:
            scalars |= hook.on_update(self, number + 1)
        return _Launched(
            number=number,
            lr=lr,
            losses=[*losses],
            norms=[*norms],
            values=Readback(scalars),
            tokens=fed.tokens,
            columns=fed.columns,
            counts=fed.counts,
            wait_s=self.feed.wait_s,
        )

    def _report(self, began: float, lag: int) -> None:
        """Reads the values of all but the newest `lag` steps, and calls the hooks with them."""
        done: list[tuple[_Launched, dict[str, float]]] = []
        with self.collective():
            while len(self._launched) > lag:
                first = self._launched.popleft()
                done.append((first, first.values.read()))
        newest = self._launched[-1] if self._launched else done[-1][0] if done else None
        if newest is not None:
            newest.seconds += time.perf_counter() - began
        for launched, values in done:
            self._settle(launched, values)

    def _settle(self, launched: _Launched, values: dict[str, float]) -> None:
        number = launched.number + 1
        losses, norms = ({name: values.pop(name) for name in names} for names in (launched.losses, launched.norms))
        grad_norm = norms.pop("grad_norm")
        good = self.guard.settle(number, losses["loss"], grad_norm, launched.lr, values)
        step = Step(
            step=number,
            losses=losses,
            lr=launched.lr,
            grad_norm=grad_norm,
            norms=norms,
            measured=values,
            skipped=not good,
            wait_s=launched.wait_s,
            seconds=launched.seconds,
            tokens=launched.tokens,
            columns=launched.columns,
            counts=launched.counts,
        )
        self.metrics["loss"] = losses["loss"]
        self.metrics["skipped"] = self.metrics.get("skipped", 0) + step.skipped
        for hook in self.hooks:
            hook.on_step(self, step)

    def _check_gradients(self) -> None:
        """Raises ClipTrainError if the loss does not depend on every trainable parameter."""
        named = self.task.model.named_parameters()
        idle = [name for name, parameter in named if parameter.requires_grad and parameter.grad is None]
        if idle:
            raise ClipTrainError(
                f"{len(idle)} parameters of the model get no gradient from this task and would not be trained "
                f"({', '.join(idle[:3])}{', …' if len(idle) > 3 else ''}): choose a task that trains the whole model"
            )
