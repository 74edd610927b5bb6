"""An estimate as text."""

from __future__ import annotations

from collections.abc import Iterator

from clip_train.config import FitConfig
from clip_train.estimate.config import Machines
from clip_train.estimate.run import Estimate


def report(found: Estimate, config: FitConfig, machines: Machines) -> str:
    """Returns a few aligned lines."""
    rows = list(_rows(found, config, machines))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {text}".rstrip() for name, text in rows)


def _rows(found: Estimate, config: FitConfig, machines: Machines) -> Iterator[tuple[str, str]]:
    train, memory = config.train, dict(found.memory)
    total, device = memory.pop("total"), memory.pop("device")
    counts = dict(found.parameters)
    whole, trained = counts.pop("total"), counts.pop("trained")
    yield "model", f"{found.model}: {whole:,} parameters, {trained:,} trained"
    for tower, count in counts.items():
        yield f"  {tower}", f"{count:,}"
    images = "" if found.image_tokens is None else f"{found.image_tokens:,} tokens of an image, "
    yield "tokens", f"{images}{found.context} of a caption"
    shards = "" if not found.shards else f", {found.shards:,} shards"
    samples = "" if found.samples is None else f": {found.samples:,} samples{shards}"
    yield "data", f"{found.data}{samples}"
    if found.steps is None or found.seen is None:
        yield "length", f"{train.epochs:g} epochs of data that was not found: steps, hours and cost are not known"
    else:
        epochs = "" if found.epochs is None else f", {found.epochs:.2f} epochs"
        yield "length", f"{found.steps:,} steps of {train.batch_size:,}: {found.seen:,} samples{epochs}"
        yield "captions", f"up to {found.seen * found.context:,} tokens"
    yield "schedule", _schedule(found)
    micro = f", {train.micro_batches} micro-batches of {found.part:,}" if train.micro_batches > 1 else ""
    yield "devices", f"{machines.device}, {found.parallel}: {found.local_batch:,} samples of a step{micro}"
    yield "memory", f"{_gb(total)} of {_gb(device)} on each device{'' if total < device else ': IT DOES NOT FIT'}"
    for name, size in memory.items():
        yield f"  {name}", _gb(size)
    again = ""
    if found.computed_per_sample > 1.001 * found.flops_per_sample:
        again = f"; {found.computed_per_sample / 1e9:,.1f} with what is computed again"
    yield "FLOPs", f"{found.flops_per_sample / 1e9:,.1f} billion of a sample, forward and backward{again}"
    if found.flops is not None and found.hours is not None:
        cost = "" if found.cost is None else f", cost {found.cost:,.2f}"
        yield "  run", f"{found.flops:.3g}"
        yield (
            "time",
            f"{found.hours:,.1f} hours, {found.device_hours:,.1f} device hours, at {machines.mfu:.0%} of peak{cost}",
        )
    yield "not counted", "the CUDA context and libraries (1 to 2 GB), fragmentation, kernels' workspaces"


def _schedule(found: Estimate) -> str:
    facts = found.schedule
    text = f"{facts['optimizer']}, {facts['schedule']}, peak {facts['lr']:g}"
    for name in ("warmup", "cooldown"):
        if facts[name]:
            text += f", {name} {facts[name]:,} samples"
    return text


def _gb(size: float) -> str:
    return f"{size / 1e9:,.2f} GB"
