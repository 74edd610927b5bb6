"""How the ranks share a module: alone, as copies (DDP), or sharded block by block (FSDP2)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from clip_models import CLIP
from clip_models.model.drawing import Drawing, named_tensors
from clip_train.batchnorm import synchronise_batch_norms
from clip_train.errors import ClipTrainError
from clip_train.parallel import World
from clip_train.parallelize.compilation import compile_parts
from clip_train.parallelize.config import AUTOCAST, ParallelConfig
from clip_train.parallelize.precision import convert
from clip_train.parallelize.recompute import recompute_blocks

ENTRIES = ("encode_image", "encode_text")
"""methods of a module that use its parameters beside `forward`"""


class Placement:
    """A module on one process. Its gradients are those of this process."""

    name = "one process"

    def __init__(self, module: nn.Module, blocks: Sequence[nn.Module], world: World, config: ParallelConfig) -> None:
        self.module = module
        """what is called in place of the module; its parameters are the same objects"""
        self._world = world

    def accumulating(self, last: bool) -> AbstractContextManager[None]:
        """Returns a context for the backward pass of a micro-batch; `last` for the last one of a step."""
        return nullcontext()

    def finish(self) -> None:
        """Completes the gradients after the last backward pass of a step."""


class Copies(Placement):
    """The same weights on each rank, whose gradients are averaged."""

    name = "ddp"

    def __init__(self, module: nn.Module, blocks: Sequence[nn.Module], world: World, config: ParallelConfig) -> None:
        super().__init__(module, blocks, world, config)
        synchronise_batch_norms(module)
        self._wrapped = self.module = DistributedDataParallel(
            module,
            device_ids=[world.device] if world.device.type == "cuda" else None,
            gradient_as_bucket_view=True,
            forward_sync_buffers=False,  # the statistics of batch norms are those of all ranks already
        )
        if config.precision == "pure_bf16":
            self._wrapped.register_comm_hook(world.size, _average_in_float32)

    def accumulating(self, last: bool) -> AbstractContextManager[None]:
        return nullcontext() if last else self._wrapped.no_sync()


class Shards(Placement):
    """Each rank holds a part of every tensor; a block is gathered while it computes (FSDP2, `fully_shard`).

    The parameters become DTensors, sharded along their first dimension; scalars stay whole tensors. On a 2-D mesh the
    ranks of a row hold one copy, and gradients are averaged over the rows. Gradients are reduced in float32 after every
    micro-batch, so that no rank holds whole gradients.
    """

    name = "fsdp"

    def __init__(self, module: nn.Module, blocks: Sequence[nn.Module], world: World, config: ParallelConfig) -> None:
        super().__init__(module, blocks, world, config)
        _refuse_shared(module, blocks)
        synchronise_batch_norms(module)
        self._scalars = [parameter for parameter in module.parameters() if parameter.ndim == 0]
        offload = CPUOffloadPolicy(pin_memory=world.device.type == "cuda") if config.offload else OffloadPolicy()
        shared: dict[str, Any] = {
            "mesh": _mesh(world, config.shard),
            "offload_policy": offload,
            "ignored_params": set(self._scalars),
        }
        for block in blocks:
            fully_shard(block, mp_policy=_policy(AUTOCAST.get(config.precision)), **shared)
        self._root: FSDPModule = fully_shard(module, mp_policy=_policy(None), **shared)
        for name in ENTRIES:
            if hasattr(module, name):
                register_fsdp_forward_method(module, name)
        self._hybrid = bool(config.shard) and config.shard < world.size

    def accumulating(self, last: bool) -> AbstractContextManager[None]:
        if self._hybrid:
            self._root.set_requires_all_reduce(last)
        return nullcontext()

    def finish(self) -> None:
        grads = [scalar.grad for scalar in self._scalars if scalar.grad is not None]
        if grads:
            mean = self._world.sum(torch.stack(grads)) / self._world.size
            for grad, value in zip(grads, mean.unbind(), strict=True):
                grad.copy_(value)


def place(module: nn.Module, blocks: Sequence[nn.Module], world: World, config: ParallelConfig) -> Placement:
    """Applies the config to the module: precision, recomputation, compilation, and last its share among the ranks.

    `blocks`: the repeated parts of the module, which are recomputed, compiled and gathered one by one. Raises
    ClipTrainError for what cannot work.
    """
    convert(module, blocks, config.precision, world.device)
    if config.grad_checkpointing != "off":
        recompute_blocks(blocks, config.grad_checkpointing)
    compile_parts(module, blocks, config)
    if world.size == 1:
        return Placement(module, blocks, world, config)
    kind = config.parallel if config.parallel != "auto" else _default(world, config)
    return _PLACEMENTS[kind](module, blocks, world, config)


_PLACEMENTS: dict[str, type[Placement]] = {kind.name: kind for kind in (Copies, Shards)}


def is_sharded(world: World, config: ParallelConfig) -> bool:
    """Whether `place` will shard the module."""
    kind = config.parallel if config.parallel != "auto" else _default(world, config)
    return world.size > 1 and kind == Shards.name


@torch.no_grad()
def draw_shards(model: CLIP, seed: int, world: World, config: ParallelConfig) -> None:
    """Draws the weights of a sharded model on the meta device, tensor by tensor, of which each rank keeps its shard.

    They are those that the same seed gives the whole model. No rank holds more than one whole tensor.
    """
    drawing, device = Drawing(model.spec, seed), torch.device("cpu") if config.offload else world.device
    drawn = {name for name, tensor in named_tensors(model) if not tensor.is_meta}
    model._apply(lambda tensor: torch.empty_like(tensor, device=device) if tensor.is_meta else tensor.to(device))
    for name, tensor in named_tensors(model):
        if name in drawn:
            continue
        value = drawing.value(name).to(tensor.dtype)
        if isinstance(tensor, DTensor):
            place = tensor.to_local().device
            value = distribute_tensor(value.to(place), tensor.device_mesh, tensor.placements, src_data_rank=None)
        tensor.copy_(value)


def _default(world: World, config: ParallelConfig) -> str:
    sharded = world.device.type == "cuda" or config.shard or config.offload
    return Shards.name if sharded and config.compile not in ("model", "step") else Copies.name


def _mesh(world: World, shard: int) -> Any:
    if shard > world.size or (shard and world.size % shard):
        raise ClipTrainError(f"train.shard = {shard} does not divide the {world.size} ranks of the run")
    if shard in (0, world.size):
        return init_device_mesh(world.device.type, (world.size,), mesh_dim_names=("shard",))
    return init_device_mesh(world.device.type, (world.size // shard, shard), mesh_dim_names=("copy", "shard"))


def _policy(autocast: str | None) -> MixedPrecisionPolicy:
    """Returns the dtypes of a block: gradients are reduced in float32.

    Autocast uses matrices in low precision anyway: gathered so, they take half of the traffic. Vectors, such as those
    of norms, stay as they are.
    """
    low = None if autocast is None else getattr(torch, autocast)
    return MixedPrecisionPolicy(
        param_dtype=low,
        param_dtype_override_fn=lambda parameter: parameter.dtype if parameter.ndim < 2 else low,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,
    )


def _refuse_shared(module: nn.Module, blocks: Sequence[nn.Module]) -> None:
    """Raises ClipTrainError for a parameter that a block shares with another module: it has no single owner."""
    owners: dict[int, int] = {}
    for number, block in enumerate(blocks):
        for parameter in block.parameters():
            owners.setdefault(id(parameter), number)
    inside = {id(child): number for number, block in enumerate(blocks) for child in block.modules()}
    for prefix, child in module.named_modules(remove_duplicate=False):
        for name, parameter in child.named_parameters(recurse=False):
            owner = owners.get(id(parameter))
            if owner is not None and inside.get(id(child)) != owner:
                raise ClipTrainError(
                    f"the model cannot be sharded block by block: {prefix}.{name} is shared between blocks; choose "
                    "train.parallel = 'ddp'"
                )


def _average_in_float32(size: int, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """Averages a bucket of bfloat16 gradients over `size` ranks: their sum is taken in float32."""
    total = bucket.buffer().float()

    def write(done: torch.futures.Future[Any]) -> Tensor:
        return bucket.buffer().copy_(total.div_(size))

    return dist.all_reduce(total, async_op=True).get_future().then(write)
