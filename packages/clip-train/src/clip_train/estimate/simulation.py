"""A training step on fake tensors, which have shapes but no memory: its FLOPs, and the memory that it would take."""

from __future__ import annotations

import weakref
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from clip_models import CLIP
from clip_models.towers.common import NoRandomInit
from clip_train.config import FitConfig
from clip_train.errors import ClipTrainError
from clip_train.gradients import Gradients
from clip_train.model import make_model, shapes_only
from clip_train.optim.build import Optimization
from clip_train.parallel import World
from clip_train.tasks.base import Task

_LOSS_SAMPLES = 64  # pairs on which the FLOPs of a loss are counted; they grow with the square


@dataclass(frozen=True, kw_only=True)
class Simulated:
    """Bytes and FLOPs of one rank that has the whole model."""

    weights: int
    """bytes of parameters and buffers, with those of a teacher"""
    gradients: int
    optimizer: int | None
    """bytes of the optimizer's state; None if it cannot be stepped without values"""
    ema: int
    activations: int
    """most bytes that the step holds at once beside weights and gradients, for the samples of the simulation"""
    together: int
    """most bytes of activations and gradients at the same time; less than their sum, because gradients come as
    activations go"""
    casts: int
    """bytes of the copies of weights in low precision, which are part of the activations"""
    inputs: int
    """bytes of the batch for one sample"""
    features: int
    """bytes of the float32 features of one sample that are compared with those of other samples"""
    flops: int
    """FLOPs of the towers and of what each sample alone needs, forward and backward, for all samples; as
    torch.utils.flop_counter counts them"""
    pair_flops: float
    """FLOPs of the losses for each pair of a sample with another one"""


class Recorder(TorchDispatchMode):
    """Records which storages come and go, but for those of `resident` tensors, and counts FLOPs.

    FLOPs are those of torch.utils.flop_counter, whose mode is not used because it keeps tensors that activation
    checkpointing frees.
    """

    def __init__(self, resident: list[Tensor]) -> None:
        super().__init__()
        self.flops = 0
        self._resident = [tensor.untyped_storage() for tensor in resident]  # kept: a number may not be given twice
        self._serials = {id(storage): -1 for storage in self._resident}
        self._casts: set[int] = set()
        self._events: list[tuple[int, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry:
            self.flops += flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=out)
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                serial = self._add(leaf.untyped_storage())
                if func is torch.ops.aten._to_copy.default and self.serial(args[0]) == -1:
                    self._casts.add(serial)
        return out

    def _add(self, storage: torch.UntypedStorage) -> int:
        key, size = id(storage), storage.nbytes()
        if key not in self._serials:
            serial = self._serials[key] = len(self._events)
            self._events.append((serial, size))
            weakref.finalize(storage, self._free, key, serial, size).atexit = False
        return self._serials[key]

    def _free(self, key: int, serial: int, size: int) -> None:
        del self._serials[key]
        self._events.append((serial, -size))

    def serial(self, tensor: Tensor) -> int | None:
        """Returns the number of a tensor's storage, -1 for a resident one."""
        return self._serials.get(id(tensor.untyped_storage()))

    def peak(self, without: Collection[int | None] = ()) -> int:
        """Returns the most bytes that were held at once, without the storages of these numbers."""
        most = held = 0
        for serial, size in self._events:
            held += 0 if serial in without else size
            most = max(most, held)
        return most

    def casts(self) -> int:
        """Returns the bytes of the copies of resident tensors in another dtype, each counted once at a time."""
        return self.peak({serial for serial, _ in self._events} - self._casts)


def build(config: FitConfig) -> tuple[CLIP, Task]:
    """Returns the model and the task of a run, on the meta device, without weights. Raises ClipError."""
    with (
        torch.device("meta"),
        NoRandomInit(),
        shapes_only(),
        mock.patch.object(nn.Module, "to", lambda module, *args, **options: module),  # it stays on the meta device
    ):
        model = make_model(config.model, seed=config.train.seed, device="meta")
        return model, config.task.build(model, precision=config.train.precision, world=World(0, 1, torch.device("cpu")))


def _with_fake_tensors(modules: list[nn.Module]) -> None:
    """Replaces the tensors of modules by those of the CPU that the FakeTensorMode around this call makes."""
    made: dict[int, tuple[Tensor, Tensor]] = {}  # with the original, so that its number is not given twice

    def fake(tensor: Tensor) -> Tensor:
        if id(tensor) not in made:
            empty = torch.empty(tensor.shape, dtype=tensor.dtype)
            kept = isinstance(tensor, nn.Parameter)
            new = nn.Parameter(empty, requires_grad=tensor.requires_grad) if kept else empty
            made[id(tensor)] = tensor, new
        return made[id(tensor)][1]

    for part in [child for module in modules for child in module.modules()]:
        tables: list[dict[str, Any]] = [part._parameters, part._buffers]
        for table in tables:
            table.update({name: fake(tensor) for name, tensor in table.items() if tensor is not None})


def simulate(config: FitConfig, samples: int) -> Simulated:
    """Simulates the forward and backward pass of `samples` samples of a rank with the whole model.

    With micro-batches these are the samples of one part. Raises ClipError for what cannot be built.
    """
    parts = min(2, config.train.micro_batches)  # the first of two has the memory of the first of many
    shared = replace(config.train, compile="off", parallel="auto", shard=0, offload=False)
    model, task = build(config)
    if task.needs_samples:
        raise ClipTrainError(
            f"--dry-run cannot simulate task.kind = {config.task.kind!r}, whose step depends on the samples; estimate "
            "the run with task.kind = 'contrastive'"
        )
    with FakeTensorMode(allow_non_fake_inputs=True):
        modules = [value for value in vars(task).values() if isinstance(value, nn.Module)]
        _with_fake_tensors(modules)
        step = Gradients(task, task.world, shared, micro_batches=parts, seed=config.train.seed)
        tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
        resident = list({id(tensor): tensor for tensor in tensors}.values())
        with Recorder(resident) as memory:
            step.backward(_batch(task, samples * parts), 0)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        grads = [parameter.grad for parameter in trained if parameter.grad is not None]
        serials = {memory.serial(grad) for grad in grads}
        pair_flops, features = _loss_of_pairs(task)
        return Simulated(
            weights=_bytes(resident),
            gradients=_bytes(grads),
            optimizer=_optimizer_bytes(model, config),
            ema=4 * sum(parameter.numel() for parameter in trained) if config.optim.ema.decay else 0,
            activations=memory.peak(serials),
            together=memory.peak(),
            casts=memory.casts(),
            inputs=_bytes(list(_batch(task, 1).values())),
            features=features,
            flops=memory.flops // parts - round(pair_flops * samples**2 * parts),
            pair_flops=pair_flops,
        )


def _batch(task: Task, samples: int) -> dict[str, Tensor]:
    """Returns a prepared batch of captions of full length."""
    lengths = {name: model.spec.text.context_length for name, model in task.texts.items()}
    return {
        "image": torch.empty(samples, 3, *task.image_size, dtype=torch.uint8),
        "uid": torch.empty(samples, dtype=torch.int64),
        **{name: torch.empty(samples, length, dtype=torch.int64) for name, length in lengths.items()},
    }


def _loss_of_pairs(task: Task) -> tuple[float, int]:
    """Returns the FLOPs of the losses for each pair of samples, forward and backward, and the bytes of the features."""
    with torch.no_grad():
        small = task.with_counts(_batch(task, 2))
        out = task.module()(small)
    features = {
        name: torch.empty(_LOSS_SAMPLES, *value.shape[1:]).requires_grad_() for name, value in out.features.items()
    }
    shared = {name: value.detach().requires_grad_() for name, value in out.shared.items()}
    batch = task.with_counts(_batch(task, _LOSS_SAMPLES))
    batch = {**batch, **task.targets(batch)}
    with Recorder([]) as recorder:
        losses = task.losses_of(features, shared, batch, ranks=1, step=0)
        torch.stack(list(losses.values())).sum().backward()
    return recorder.flops / _LOSS_SAMPLES**2, sum(value[0].numel() * 4 for value in features.values())


def _optimizer_bytes(model: nn.Module, config: FitConfig) -> int | None:
    optimizer = Optimization(model, config.optim, torch.device("cpu")).optimizer
    try:
        optimizer.step()
    except (DataDependentOutputException, NotImplementedError):
        return None
    values = [value for state in optimizer.state.values() for value in tree_leaves(state)]
    return _bytes([value for value in values if isinstance(value, Tensor)])


def _bytes(tensors: list[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
