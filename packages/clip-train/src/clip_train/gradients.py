"""The gradient of one optimizer step, of a whole batch or of micro-batches.

With micro-batches the features are computed twice (GradCache, Gao et al. 2021): once without a graph, to get the
gradient of the loss with respect to every feature of the whole batch, and again one micro-batch at a time, to carry
those gradients into the towers. Memory is that of one micro-batch plus the features, and the gradient is that of the
whole batch. The second pass repeats the random draws of the first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from clip_train.draws import KeyedDraws
from clip_train.errors import ClipTrainError
from clip_train.model import is_drawn
from clip_train.monitor.similarity import pair_sums
from clip_train.parallel import World
from clip_train.parallelize.compilation import compiled_step, limited
from clip_train.parallelize.config import ParallelConfig
from clip_train.parallelize.placement import draw_shards, place
from clip_train.parallelize.precision import LossScale
from clip_train.tasks.base import Batch, Task, sum_of

_DEFAULT = ParallelConfig()


class Gradients:
    """Computes the gradients of a task's loss. Each rank splits its batch into `micro_batches` equal parts."""

    def __init__(
        self,
        task: Task,
        world: World,
        config: ParallelConfig = _DEFAULT,
        *,
        micro_batches: int = 1,
        seed: int = 0,
    ) -> None:
        self._task, self._world, self._micro_batches = task, world, micro_batches
        self.sums: Tensor | None = None
        """of the latest step; see `pair_sums`"""
        if micro_batches > 1:
            _refuse_batch_norms(task.model)
        self._draws = KeyedDraws(task.model, seed)
        self._config = config
        self._placement = place(task.module(), task.model.blocks(), world, config)
        self._module = self._placement.module
        if not is_drawn(task.model):
            draw_shards(task.model, seed, world, config)
        self._losses = compiled_step(self._losses_of_batch, config)
        self.scale = LossScale(world.device) if config.precision == "fp16" else None
        """the factor on the loss; None in all precisions but fp16"""
        self.multiplier: Callable[[], AbstractContextManager[Any]] = nullcontext
        """the context of the products of matrices, forward and backward; see `clip_train.matmul`"""

    def backward(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """Adds the gradients of a prepared batch. Returns the loss of all ranks and, if there are several, its parts.

        `step` selects the random draws. Values are detached scalars on the device.
        """
        compute = self._whole if self._micro_batches == 1 else self._in_parts
        batch = self._task.with_counts(batch)
        targets = [self._task.targets(part) for part in _split(batch, self._micro_batches)]
        batch = {**batch, **{name: torch.cat([each[name] for each in targets]) for name in targets[0]}}
        with self.multiplier(), limited(self._config):
            losses = compute(batch, step)
        self._placement.finish()
        if self.scale is not None:
            self.scale.unscale([*self._task.model.parameters()])
        total = {"loss": sum_of(losses)}
        return total if len(losses) == 1 else {**total, **losses}

    def _whole(self, batch: Batch, step: int) -> dict[str, Tensor]:
        with self._draws.over(batch.get("uid"), step):
            losses, self.sums = self._losses(batch, step)
            self._scaled(sum_of(losses)).backward()
        return _detached(losses)

    def _scaled(self, loss: Tensor) -> Tensor:
        return loss if self.scale is None else loss * self.scale.value

    def _losses_of_batch(self, batch: Batch, step: int) -> tuple[dict[str, Tensor], Tensor | None]:
        out = self._module(batch)
        joint = self._task.losses_of(out.features, out.shared, batch, ranks=self._world.size, step=step)
        return joint | out.losses, pair_sums(out.features)

    def _in_parts(self, batch: Batch, step: int) -> dict[str, Tensor]:
        parts = _split(batch, self._micro_batches)
        states, outputs = [], []
        for part in parts:
            states.append(_generator_state(self._world.device))
            with torch.no_grad(), self._draws.over(part.get("uid"), step):
                outputs.append(self._module(part))
        features = {
            name: torch.cat([out.features[name] for out in outputs]).requires_grad_() for name in outputs[0].features
        }
        self.sums = pair_sums(features)
        shared = {name: value.detach().requires_grad_() for name, value in outputs[0].shared.items()}
        joint = self._task.losses_of(features, shared, batch, ranks=self._world.size, step=step)
        if joint:
            self._scaled(sum_of(joint)).backward()
        grads = {name: value.grad.chunk(len(parts)) for name, value in features.items() if value.grad is not None}
        shared_grads = {name: value.grad for name, value in shared.items() if value.grad is not None}
        own = dict.fromkeys(outputs[0].losses, torch.zeros((), device=self._world.device))
        with _kept_generator_state(self._world.device):
            for number, (part, state) in enumerate(zip(parts, states, strict=True)):
                last = number == len(parts) - 1
                _set_generator_state(self._world.device, state)
                with self._placement.accumulating(last), self._draws.over(part.get("uid"), step):
                    out = self._module(part)
                    pieces = [(out.features[name] * grad[number]).sum() for name, grad in grads.items()]
                    if last:  # the loss has used them once
                        pieces += [(out.shared[name] * grad).sum() for name, grad in shared_grads.items()]
                    own_losses = [self._scaled(loss) for loss in out.losses.values()]
                    torch.stack([*pieces, *own_losses]).sum().backward()
                for name, loss in out.losses.items():
                    own[name] = own[name] + loss.detach()
        return _detached(joint | own)


def _detached(losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: loss.detach() for name, loss in losses.items()}


def _refuse_batch_norms(model: nn.Module) -> None:
    # A layer whose statistics are frozen is in eval mode, and does not depend on the batch.
    found = [name for name, layer in model.named_modules() if isinstance(layer, _BatchNorm) and layer.training]
    if found:
        raise ClipTrainError(
            f"train.micro_batches must be 1 for a model with batch norms ({found[0]} and {len(found) - 1} more): their "
            "statistics would be those of a micro-batch, and the gradient another one; use more ranks instead"
        )


def _split(batch: Batch, count: int) -> list[dict[str, Tensor]]:
    pieces = {name: value.chunk(count) for name, value in batch.items()}
    return [{name: chunks[number] for name, chunks in pieces.items()} for number in range(count)]


def _generator_state(device: torch.device) -> list[Tensor]:
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def _set_generator_state(device: torch.device, state: list[Tensor]) -> None:
    torch.set_rng_state(state[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[1], device)


@contextmanager
def _kept_generator_state(device: torch.device) -> Iterator[None]:
    state = _generator_state(device)
    yield
    _set_generator_state(device, state)
