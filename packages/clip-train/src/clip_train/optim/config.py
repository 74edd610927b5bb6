"""The config of the optimizer and its checks. This module does not import torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from clip_core.suggest import did_you_mean
from clip_train.errors import ClipTrainError
from clip_train.optim import KNOWN, OPTIMIZERS, SCHEDULES
from clip_train.optim.plan import Length, parse_length


@dataclass(frozen=True, kw_only=True)
class EmaConfig:
    """A moving average of the trained weights. It is measured in validation and exported beside the weights."""

    decay: float = 0.0
    """share of the average that one step keeps, such as 0.9999; 0 disables the average"""
    warmup: bool = True
    """whether the decay after t steps is at most (1 + t) / (10 + t), so that the first weights are soon forgotten"""
    every: int = 1
    """steps between two updates; each one then counts as so many steps"""


@dataclass(frozen=True, kw_only=True)
class SpikeConfig:
    """What happens at a step whose loss or gradient norm is far above the median of the steps before."""

    action: Literal["off", "skip", "rewind", "stop"] = "off"
    """off trains on it, skip leaves its update out, stop ends the run before the update, rewind continues from the
    newest checkpoint without the batches from there to the spike; a loss or norm that is not finite ends the run, but
    with rewind it is a spike"""
    loss: float = 2.0
    """a spike has more than this many times the median loss; 0 does not look at the loss"""
    norm: float = 5.0
    """a spike has more than this many times the median gradient norm; 0 does not look at the norm"""
    window: int = 100
    """steps of the running median; the first steps, until it is full, are not judged"""
    most: int = 10
    """the run ends when more steps than this are skipped in a row, or at a spike after so many rewinds to one
    checkpoint"""


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimizer, its learning rate and what becomes of the gradient. A length is steps or, say, "10M samples"."""

    name: str = "adamw"
    """the optimizer: a registered name, or package.module:name of a class or a function"""
    options: dict[str, Any] = field(default_factory=dict)
    """further keyword arguments of the optimizer, such as {nesterov = true} for muon"""
    lr: float = 5e-4
    """peak learning rate"""
    betas: tuple[float, float] = (0.9, 0.98)
    """decay of the first and of the second moment, for optimizers that take two"""
    eps: float = 1e-6
    """added to the square root of the second moment"""
    weight_decay: float = 0.2
    """decay of the parameters that `decay_rule` chooses; decoupled, but for sgd, lars and, unless asked for, lamb"""
    decay_rule: Literal["dimension", "openclip"] = "dimension"
    """dimension: matrices, but for what the model exempts (position tables); openclip: by name, as its release 3.3"""
    no_decay: tuple[str, ...] = ()
    """patterns such as visual.proj or *.token_embedding.* of further parameters that do not decay"""
    rates: dict[str, float] = field(default_factory=dict)
    """factors on the learning rate by pattern, {"visual.*" = 0.1}; those of all patterns that match are multiplied"""
    image_layer_decay: float = 1.0
    """factor on the learning rate of each group of layers of the image tower, against the group above it"""
    text_layer_decay: float = 1.0
    """the same for the text tower"""
    fallback: tuple[str, ...] = ()
    """patterns of matrices that muon gives to its AdamW, beside embeddings and what the model exempts from decay"""
    warmup: Length = 0
    """length of the linear warm-up"""
    schedule: str = "cosine"
    """after the warm-up: cosine, constant, wsd, rsqrt, or package.module:function"""
    final: float = 0.0
    """share of the peak at the end of a cosine or of a cooldown"""
    cooldown: Length = 0
    """length of the fall to `final` at the end, for wsd and rsqrt; the rate before it does not depend on the length"""
    cooldown_shape: Literal["linear", "sqrt", "cosine"] = "linear"
    """1 - x, 1 - sqrt(x) or half a cosine over the share x of the cooldown"""
    cooldown_power: float = 1.0
    """exponent of the shape"""
    timescale: Length = 0
    """length in which rsqrt falls to 1/sqrt(2); 0 takes the warm-up's"""
    grad_clip_norm: float = 0.0
    """largest global gradient norm; 0 disables clipping"""
    grad_clip: dict[str, float] = field(default_factory=dict)
    """largest gradient norm of each tower: {image = 1.0, text = 0.5}; also decoder, and other, the logit scale"""
    agc: float = 0.0
    """largest ratio of the norms of gradient and weights in each unit (adaptive gradient clipping); 0 disables it"""
    ema: EmaConfig = field(default_factory=EmaConfig)
    spike: SpikeConfig = field(default_factory=SpikeConfig)


TOWERS = ("image", "text", "decoder", "other")
_COOLDOWN = {"cosine": False, "constant": False, "wsd": True}
"""Whether a schedule has a cooldown; others may have one."""


def check_optim(config: OptimConfig) -> None:
    """Checks the values. Raises ClipError. Does not require torch."""
    OPTIMIZERS.check(config.name)
    SCHEDULES.check(config.schedule)
    for name in ("warmup", "cooldown", "timescale"):
        parse_length(f"optim.{name}", getattr(config, name))
    _check_ranges(config)
    _check_schedule(config)
    _check_clipping(config)
    known = KNOWN.get(config.name)
    if known:
        check_options(config, known.options)
    if config.fallback and not (known and known.fallback):
        names = ", ".join(name for name, known in KNOWN.items() if known.fallback)
        raise ClipTrainError(f"optim.fallback is for {names}, not for optim.name = {config.name!r}: omit it")


def check_options(config: OptimConfig, valid: Iterable[str]) -> None:
    """Raises ClipTrainError, with the nearest name, for an option that is not valid."""
    valid = tuple(valid)
    for name in config.options:
        if name in valid:
            continue
        fields = ("lr", "betas", "eps", "weight_decay", "warmup")
        hint = f"set optim.{name}" if name in fields else did_you_mean(name, valid, f"it has {', '.join(valid)}")
        raise ClipTrainError(f"optim.options.{name}: the optimizer {config.name!r} has no such option; {hint}")


def _check_ranges(config: OptimConfig) -> None:
    ema, spike = config.ema, config.spike
    above_0: list[tuple[str, float]] = [
        ("lr", config.lr),
        ("eps", config.eps),
        ("cooldown_power", config.cooldown_power),
        *((f"rates.{name!r}", factor) for name, factor in config.rates.items()),
        *((f"grad_clip.{name}", limit) for name, limit in config.grad_clip.items()),
    ]
    at_least: list[tuple[str, float, float]] = [
        ("weight_decay", config.weight_decay, 0),
        ("grad_clip_norm", config.grad_clip_norm, 0),
        ("agc", config.agc, 0),
        ("ema.every", ema.every, 1),
        ("spike.window", spike.window, 2),
        ("spike.most", spike.most, 0),
    ]
    factors = (("image_layer_decay", config.image_layer_decay), ("text_layer_decay", config.text_layer_decay))
    bad = [f"{name} = {value} must be above 0" for name, value in above_0 if value <= 0]
    bad += [f"{name} = {value} must be at least {least}" for name, value, least in at_least if value < least]
    bad += [f"{name} = {value} must be above 0 and at most 1" for name, value in factors if not 0 < value <= 1]
    if not all(0 <= beta < 1 for beta in config.betas):
        bad.append(f"betas = {config.betas} must be in [0, 1)")
    if not 0 <= ema.decay < 1:
        bad.append(f"ema.decay = {ema.decay} must be in [0, 1)")
    if not 0 <= config.final <= 1:
        bad.append(f"final = {config.final} must be in [0, 1]")
    for name, value in (("loss", spike.loss), ("norm", spike.norm)):
        if value and value <= 1:
            bad.append(f"spike.{name} = {value} must be above 1, or 0 to ignore the {name}")
    if bad:
        raise ClipTrainError(f"optim.{bad[0]}")


def _check_schedule(config: OptimConfig) -> None:
    cooldown = parse_length("optim.cooldown", config.cooldown)[0] > 0
    wanted = _COOLDOWN.get(config.schedule, cooldown)
    if wanted and not cooldown:
        raise ClipTrainError(f"optim.schedule = {config.schedule!r} ends with a cooldown: set optim.cooldown")
    if cooldown and not wanted:
        raise ClipTrainError(
            f"optim.cooldown = {config.cooldown!r} is for the schedules wsd and rsqrt, not for {config.schedule!r}: "
            "choose one of them, or omit optim.cooldown"
        )
    known = KNOWN.get(config.name)
    if known and known.schedule_free and config.schedule != "constant":
        raise ClipTrainError(
            f"optim.name = {config.name!r} averages its weights in place of a schedule: set "
            f"optim.schedule = 'constant', not {config.schedule!r}"
        )


def _check_clipping(config: OptimConfig) -> None:
    ways = {"grad_clip_norm": config.grad_clip_norm, "grad_clip": config.grad_clip, "agc": config.agc}
    given = [f"optim.{name} = {value}" for name, value in ways.items() if value]
    if len(given) > 1:
        raise ClipTrainError(f"{' and '.join(given)} clip the gradient twice: give one of them")
    for name in config.grad_clip:
        if name not in TOWERS:
            hint = did_you_mean(name, TOWERS, f"the names are {', '.join(TOWERS)}")
            raise ClipTrainError(f"optim.grad_clip.{name} names no tower; {hint}")
