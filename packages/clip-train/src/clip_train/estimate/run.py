"""The estimate of a whole run, from its config and the machines."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from clip_core import ClipError
from clip_data.stream import build_manifest
from clip_models import CLIP
from clip_models.specs import as_pair, get_model_spec
from clip_train.config import FitConfig, plan_of, total_steps
from clip_train.estimate.config import Machines
from clip_train.estimate.simulation import Simulated, build, simulate
from clip_train.hardware import devices
from clip_train.losses.tiles import MIN_COLUMNS, TILE_ELEMENTS

_TILES = 3  # float32 tiles that the backward pass of a loss holds at once


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a run costs. Times and costs are None where the length of the run is not known."""

    model: str
    parameters: dict[str, int]
    """total, trained, and those of each tower"""
    context: int
    """tokens of a caption"""
    image_tokens: int | None
    """patches of an image and a class token; None for a tower without patches"""
    data: str
    """what was found of the samples"""
    shards: int | None
    samples: int | None
    """samples of an epoch"""
    steps: int | None
    seen: int | None
    """samples that the run sees"""
    epochs: float | None
    schedule: dict[str, Any]
    """peak learning rate, and the lengths of warm-up and cooldown in samples"""
    parallel: str
    local_batch: int
    """samples of one rank in a step"""
    part: int
    """samples of one micro-batch"""
    memory: dict[str, float]
    """bytes on each device by part, in `total` the most that they take at once, and `device`, what the device has"""
    flops_per_sample: float
    """FLOPs of forward and backward pass of one sample, with its share of the loss, each computed once"""
    computed_per_sample: float
    """FLOPs that are computed, with what is computed again for less memory"""
    flops: float | None
    """computed FLOPs of the run"""
    hours: float | None
    device_hours: float | None
    cost: float | None


def estimate(config: FitConfig, machines: Machines) -> Estimate:
    """Estimates a resolved config. Missing datasets are reported, not refused. Raises ClipError for anything else."""
    train = config.train
    machines.check(train.batch_size, train.micro_batches)
    data, shards, samples = _data(config)
    steps = _steps(config, samples)
    local = train.batch_size // machines.devices
    part = local // train.micro_batches
    found = simulate(config, part)
    once, few = found, part
    if train.micro_batches > 1 or train.grad_checkpointing != "off":
        plain = replace(train, micro_batches=1, grad_checkpointing="off")
        few = min(part, 2)  # the FLOPs of each are the same
        once = simulate(replace(config, train=plain), few)
    pair = found.pair_flops * train.batch_size
    computed = found.flops / part + pair
    seen = None if steps is None else steps * train.batch_size
    hardware = devices()[machines.device]
    peak = hardware.fp32 if train.precision == "fp32" else hardware.low
    hours = None if seen is None else seen * computed / (peak * machines.mfu * machines.devices) / 3600
    spec = get_model_spec(config.model.name)
    parallel, shares = _parallel(config, machines)
    model, _ = build(config)
    return Estimate(
        model=config.model.name,
        parameters=_parameters(model),
        context=config.model.context_length or spec.text.context_length,
        image_tokens=_image_tokens(model),
        data=data,
        shards=shards,
        samples=samples,
        steps=steps,
        seen=seen,
        epochs=seen / samples if seen and samples else None,
        schedule=_schedule(config, steps, samples),
        parallel=parallel,
        local_batch=local,
        part=part,
        memory={**_memory(config, machines, found, local, part, shares, model), "device": hardware.memory},
        flops_per_sample=once.flops / few + pair,
        computed_per_sample=computed,
        flops=None if seen is None else seen * computed,
        hours=hours,
        device_hours=None if hours is None else hours * machines.devices,
        cost=None if hours is None or not machines.price else hours * machines.devices * machines.price,
    )


def _data(config: FitConfig) -> tuple[str, int | None, int | None]:
    """Returns (what was found, shards, samples)."""
    if config.data.synthetic:
        return "synthetic", 0, config.data.synthetic.samples
    try:
        manifest = build_manifest(config.data.sources)
    except (ClipError, OSError) as error:
        return f"not found: {error}", None, None
    shards = sum(len(part.units) for part in manifest.parts)
    return ", ".join(source.dataset for source in config.data.sources), shards, manifest.samples


def _steps(config: FitConfig, samples: int | None) -> int | None:
    train = config.train
    if samples is not None:
        return total_steps(config, samples)
    if train.steps or train.samples:
        return train.steps or train.samples // train.batch_size
    return None


def _schedule(config: FitConfig, steps: int | None, samples: int | None) -> dict[str, Any]:
    optim = config.optim
    facts: dict[str, Any] = {"optimizer": optim.name, "schedule": optim.schedule, "lr": optim.lr, "final": optim.final}
    lengths = (optim.warmup, optim.cooldown, optim.timescale)
    by_epoch = any(isinstance(length, str) and "epoch" in length for length in lengths)
    if steps is None or (samples is None and by_epoch):
        return facts | {"warmup": None, "cooldown": None}
    plan = plan_of(config, steps, samples or 1)
    return facts | {"warmup": plan.warmup, "cooldown": plan.cooldown}


def _parameters(model: CLIP) -> dict[str, int]:
    named = dict(model.named_parameters())
    towers = {"image": 0, "text": 0, "decoder": 0, "other": 0}
    for name, parameter in named.items():
        if name.startswith("visual."):
            tower = "image"
        elif name.startswith("text_decoder."):
            tower = "decoder"
        else:
            tower = "other" if name in ("logit_scale", "logit_bias") else "text"
        towers[tower] += parameter.numel()
    total = sum(parameter.numel() for parameter in named.values())
    trained = sum(parameter.numel() for parameter in named.values() if parameter.requires_grad)
    return {"total": total, "trained": trained, **{name: count for name, count in towers.items() if count}}


def _image_tokens(model: CLIP) -> int | None:
    patch = getattr(model.spec.vision, "patch_size", None)
    if not patch:
        return None
    height, width = (
        size // side for size, side in zip(as_pair(model.spec.vision.image_size), as_pair(patch), strict=True)
    )
    return height * width + 1


def _parallel(config: FitConfig, machines: Machines) -> tuple[str, int]:
    """Returns how the ranks share the model on CUDA, and how many of them hold one copy together."""
    train = config.train
    if machines.devices == 1:
        return "one device", 1
    sharded = train.parallel == "fsdp" or (train.parallel == "auto" and train.compile not in ("model", "step"))
    if not sharded:
        return f"ddp on {machines.devices}", 1
    shares = train.shard or machines.devices
    return f"fsdp on {machines.devices}, each copy on {shares}", shares


def _memory(
    config: FitConfig,
    machines: Machines,
    found: Simulated,
    local: int,
    part: int,
    shares: int,
    model: CLIP,
) -> dict[str, float]:
    """Returns the bytes on each device by part."""
    train, world = config.train, machines.devices
    sharded = shares > 1
    kept = 0 if sharded and train.offload else 1 / shares
    memory: dict[str, float] = {
        "weights": found.weights * kept,
        "gradients": found.gradients * kept,
        "optimizer": (found.optimizer or 0) * kept,
        "ema": found.ema * kept,
        "activations": found.activations - (found.casts if sharded else 0),
    }
    if sharded:
        memory["gathered weights"] = _gathered(model, model.blocks(), low=train.precision != "fp32")
    # Inputs and features of the other micro-batches, the features of the other ranks and their gradient.
    memory["batch and features"] = (local - part) * (found.inputs + 2 * found.features) + (
        train.batch_size - local
    ) * found.features
    memory["loss tiles"] = 4 * _TILES * (_tile("cuda", local, train.batch_size) - _tile("cpu", local, local))
    memory = {name: size for name, size in memory.items() if size > 0}
    total = sum(memory.values())
    if world == 1:  # gradients come as activations go
        total += found.together - found.activations - found.gradients
    return {**memory, "total": total}


def _gathered(model: CLIP, blocks: list[nn.Module], *, low: bool) -> int:
    """Returns the bytes of whole weights on each device: what is in no block, two blocks, and a block's gradient."""

    def numbers(parameters: Any) -> int:
        return sum(parameter.numel() for parameter in parameters)

    inside = {id(parameter) for block in blocks for parameter in block.parameters()}
    root = numbers(parameter for parameter in model.parameters() if id(parameter) not in inside)
    largest = max(numbers(block.parameters()) for block in blocks)
    return 2 * 4 * root + 2 * largest * (2 if low else 4) + 4 * largest


def _tile(device: str, rows: int, columns: int) -> int:
    """Returns the elements of a tile of similarities."""
    return min(rows * columns, max(MIN_COLUMNS * rows, TILE_ELEMENTS[device]))
