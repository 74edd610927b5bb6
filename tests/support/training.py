"""A few optimizer steps of a task under any way to share, recompute and compile the model."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from clip_models.model import build_model
from clip_train.gradients import Gradients
from clip_train.optim.build import Optimization
from clip_train.optim.config import EmaConfig, OptimConfig
from clip_train.optim.guard import update
from clip_train.parallel import World
from clip_train.parallelize.config import ParallelConfig
from tests.support.steps import CASES, FP32, PAIRS, batch_of, whole

# Not AdamW, which makes a step of the learning rate of a gradient that is zero but for rounding.
OPTIM = OptimConfig(name="sgd", lr=0.05, grad_clip={"image": 0.5, "text": 0.5}, ema=EmaConfig(decay=0.9))


def train(
    name: str,
    world: World,
    parallel: ParallelConfig = FP32,
    parts: int = 1,
    steps: int = 2,
    optim: OptimConfig = OPTIM,
) -> dict[str, np.ndarray]:
    """Losses and norms of each step, and weights, averages and buffers after the last, whole."""
    config, spec = CASES[name]
    torch.manual_seed(0)
    task = config.build(build_model(spec), precision=parallel.precision, world=world)
    gradients = Gradients(task, world, parallel, micro_batches=parts, seed=1)
    made = Optimization(task.model, optim, world.device)
    size = PAIRS // world.size
    batch = task.prepare(batch_of(task, range(world.rank * size, (world.rank + 1) * size)))
    found: dict[str, Any] = {}
    for number in range(steps):
        losses = gradients.backward(batch, number)
        norms = made.clip.norms()
        made.clip.apply(norms)
        update(made.optimizer, made.guard.judge(losses["loss"], norms["grad_norm"]))
        made.optimizer.zero_grad(set_to_none=True)
        task.after_step()
        if made.ema:
            made.ema.update(number + 1)
        found |= {f"{number} {key}": value for key, value in (losses | norms).items()}
    found |= {f"weight {key}": value for key, value in task.model.named_parameters()}
    found |= {f"buffer {key}": value for key, value in task.model.named_buffers()}
    if made.ema:
        found |= {f"average {key}": value for key, value in made.ema.state().items()}
    return {key: whole(value.detach()).double().numpy() for key, value in found.items()}


def largest_difference(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> float:
    """The largest relative difference of a step's values, of the weights, and of the averages, each as one vector."""
    assert found.keys() == wanted.keys()
    kinds: dict[str, list[str]] = {}
    for key in wanted:
        kinds.setdefault(key.partition(" ")[0], []).append(key)

    def apart(keys: list[str]) -> float:
        one, other = (np.concatenate([side[key].ravel() for key in keys]) for side in (found, wanted))
        return float(np.linalg.norm(one - other) / np.linalg.norm(other))

    return max(map(apart, kinds.values()))
