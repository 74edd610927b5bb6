"""Steps of a recipe without a run: to measure them (`bench`) and to try learning rates (`lr-find`)."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from clip_train.config import FitConfig
from clip_train.gradients import Gradients
from clip_train.model import make_model
from clip_train.optim.build import Optimization
from clip_train.optim.guard import update
from clip_train.parallel import World, join_world
from clip_train.tasks.base import Task
from clip_train.trainer import check_batch, find_samples, make_stream


@dataclass(kw_only=True)
class Trial:
    """The parts of a run that a step needs. Nothing is written."""

    world: World
    task: Task
    gradients: Gradients
    optim: Optimization
    stream: Any

    def step(self, batch: Mapping[str, Tensor], number: int, lr: float) -> float:
        """Takes one optimizer step at a learning rate. Returns the loss before it, and waits for the device."""
        optimizer = self.optim.optimizer
        for group in optimizer.param_groups:
            group["lr"] = lr * group.get("rate", 1.0)
        with self.world.collective():
            losses = self.gradients.backward(batch, number)
            norms = self.optim.clip.norms()
            good = self.optim.guard.judge(losses["loss"], norms["grad_norm"])
            self.optim.clip.apply(norms)
            update(optimizer, good)
        optimizer.zero_grad(set_to_none=True)
        self.task.after_step()
        return float(losses["loss"])


@contextmanager
def trial(config: FitConfig) -> Iterator[Trial]:
    """Builds the parts of a resolved config, in this process or with the other ranks of its launcher."""
    threads = torch.get_num_threads()
    with join_world(config.train.device) as world, ExitStack() as stack:
        if config.train.threads:
            torch.set_num_threads(config.train.threads)
            stack.callback(torch.set_num_threads, threads)
        check_batch(config, world)
        manifest, val_manifest = find_samples(config, world)
        model = make_model(config.model, seed=config.train.seed)
        task = config.task.build(model, precision=config.train.precision, world=world)
        task.text_lengths = config.data.text_lengths
        task.start(manifest, val_manifest, batch_size=config.train.batch_size)
        gradients = Gradients(
            task, world, config.train, micro_batches=config.train.micro_batches, seed=config.train.seed
        )
        stream = make_stream(config, manifest, task, world)
        stack.callback(stream.close)
        model.train()
        yield Trial(
            world=world,
            task=task,
            gradients=gradients,
            optim=Optimization(model, config.optim, world.device, gradients.scale),
            stream=stream,
        )


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Seconds of a step of all ranks, medians, and what limits it."""

    samples: int
    """samples of a step, of all ranks"""
    compute_s: float
    """a step with its batch on the device"""
    host_s: float
    """of these, seconds in which the host has not yet given the device all of its work; all of them on a CPU"""
    exchange_s: float
    """of these, seconds of the communication between ranks: an all-reduce of the gradients, measured alone"""
    loader_s: float
    """a batch from the loader, alone"""
    whole_s: float
    """a step that waits for its batch"""
    limit: str
    """loader, network, host or device"""


def measure(parts: Trial, lr: float, steps: int) -> Rates:
    """Times `steps` steps of each kind, after two that are not counted."""
    world, batches = parts.world, iter(parts.stream)
    first = next(batches)
    held = parts.task.prepare(first)
    launched: list[float] = []

    def on_hand(number: int) -> None:
        began = time.perf_counter()
        parts.gradients.backward(held, number)
        launched.append(time.perf_counter() - began)
        parts.optim.optimizer.zero_grad(set_to_none=True)
        parts.step(held, number, lr)

    compute = _median(lambda number: parts.step(held, number, lr), steps, world)
    loader = _median(lambda number: next(batches), steps, world)
    whole = _median(lambda number: parts.step(parts.task.prepare(next(batches)), number, lr), steps, world)
    host = compute
    if world.device.type == "cuda":
        _median(on_hand, steps, world)
        host = min(compute, statistics.median(launched))
    exchange = _exchange(parts, steps) if world.size > 1 else 0.0
    if loader > compute:
        limit = "loader"
    elif exchange > 0.5 * compute:
        limit = "network"
    else:
        limit = "host" if world.device.type == "cuda" and host > 0.9 * compute else "device"
    return Rates(
        samples=world.size * len(held["image"]),
        compute_s=compute,
        host_s=host,
        exchange_s=exchange,
        loader_s=loader,
        whole_s=whole,
        limit=limit,
    )


def _median(act: Any, times: int, world: World) -> float:
    """Returns the median seconds of a call on the slowest rank."""
    seconds = []
    for number in range(times + 2):
        began = time.perf_counter()
        act(number)
        if world.device.type == "cuda":
            torch.cuda.synchronize(world.device)
        seconds.append(time.perf_counter() - began)
    return max(world.gather(statistics.median(seconds[2:])))


def _exchange(parts: Trial, steps: int) -> float:
    numbers = sum(parameter.numel() for parameter in parts.task.model.parameters() if parameter.requires_grad)
    gradients = torch.zeros(numbers, device=parts.world.device)
    return _median(lambda number: parts.world.sum(gradients), steps, parts.world)


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Losses by learning rate."""

    lr: list[float]
    loss: list[float]
    smoothed: list[float]
    suggested: float
    """a tenth of the rate at which the smoothed loss is lowest, at which it still falls"""


def range_test(parts: Trial, lowest: float, highest: float, steps: int) -> Curve:
    """Raises the rate by a constant factor in every step (Smith 2017, arXiv 1506.01186).

    Losses are smoothed by an exponential mean without bias. The test ends where the loss is not finite or four times
    its lowest value.
    """
    batches, rates, losses, smoothed, mean = iter(parts.stream), [], [], [], 0.0
    for number in range(steps):
        lr = lowest * (highest / lowest) ** (number / (steps - 1))
        loss = parts.step(parts.task.prepare(next(batches)), number, lr)
        if not math.isfinite(loss):
            break
        mean = 0.9 * mean + 0.1 * loss
        rates.append(lr)
        losses.append(loss)
        smoothed.append(mean / (1 - 0.9 ** (number + 1)))
        if number > 10 and smoothed[-1] > 4 * min(smoothed):
            break
    return Curve(lr=rates, loss=losses, smoothed=smoothed, suggested=suggestion(rates, smoothed))


def suggestion(rates: list[float], smoothed: list[float]) -> float:
    """Returns a tenth of the rate of the lowest loss, without the first tenth of the steps, whose mean is of few."""
    first = len(smoothed) // 10
    return rates[first + smoothed[first:].index(min(smoothed[first:]))] / 10
