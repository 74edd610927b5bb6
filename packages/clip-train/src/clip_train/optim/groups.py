"""Parameter groups: which parameters decay, and the factor on the learning rate of each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from clip_core import ClipError
from clip_core.suggest import did_you_mean
from clip_models import CLIP
from clip_train.errors import ClipTrainError
from clip_train.optim import KNOWN
from clip_train.optim.config import OptimConfig

OWN_KEYS = ("params", "rate", "use_fallback")
"""Keys of the groups that are not the optimizer's; `rate` is the factor on the learning rate."""


def parameter_groups(model: nn.Module, config: OptimConfig) -> list[dict[str, Any]]:
    """Returns groups of the trainable parameters with `weight_decay`, `rate` and, for muon, `use_fallback`.

    A group has one value of each; those that decay come first, then higher rates. Raises ClipTrainError for a pattern
    that matches no parameter, for a tower without groups of layers, and if nothing is trainable.
    """
    named = dict(model.named_parameters())
    rule = _RULES[config.decay_rule](model)
    spared, rates, fallback = matches(named, config.no_decay, "optim.no_decay"), _rates(model, config), set[str]()
    known = KNOWN.get(config.name)
    if known and known.fallback:
        fallback = matches(named, config.fallback, "optim.fallback") | _tables(model)
    found: dict[tuple[bool, float, bool], list[nn.Parameter]] = {}
    for name, parameter in named.items():
        if parameter.requires_grad:
            kept = name in spared or not rule(name, parameter)
            found.setdefault((kept, -rates[name], name in fallback), []).append(parameter)
    if not found:
        raise ClipTrainError("no parameter of the model is trainable: leave one unlocked")
    groups = []
    for kept, negative, routed in sorted(found):
        group = {"params": found[kept, negative, routed], "rate": -negative}
        group["weight_decay"] = 0.0 if kept else config.weight_decay
        groups.append({**group, "use_fallback": True} if routed else group)
    return groups


def matches(names: Iterable[str], patterns: Iterable[str], key: str) -> set[str]:
    """Returns the names that match a pattern. Raises ClipTrainError, which names the key, for one without a match."""
    found: set[str] = set()
    names = tuple(names)
    for pattern in patterns:
        some = {name for name in names if fnmatchcase(name, pattern)}
        if not some:
            hint = did_you_mean(pattern, names, f"its parameters are {', '.join(names[:3])}, …", cutoff=0.5)
            raise ClipTrainError(f"{key}: the pattern {pattern!r} matches no parameter of the model; {hint}")
        found |= some
    return found


def _exempt(model: nn.Module) -> set[str]:
    return model.no_weight_decay() if isinstance(model, CLIP) else set()


def _tables(model: nn.Module) -> set[str]:
    """Returns the parameters that are tables of vectors, not maps: embeddings, and what the model exempts."""
    modules = (name for name, module in model.named_modules() if isinstance(module, nn.Embedding))
    return _exempt(model) | {f"{name}.weight" for name in modules}


def _by_dimension(model: nn.Module) -> Callable[[str, Tensor], bool]:
    exempt = _exempt(model)
    return lambda name, parameter: parameter.ndim >= 2 and name not in exempt


def _by_name(model: nn.Module) -> Callable[[str, Tensor], bool]:
    parts = ("bn", "ln", "bias", "logit_scale")
    return lambda name, parameter: parameter.ndim >= 2 and not any(part in name for part in parts)


_RULES: dict[str, Callable[[nn.Module], Callable[[str, Tensor], bool]]] = {
    "dimension": _by_dimension,
    "openclip": _by_name,
}


def _rates(model: nn.Module, config: OptimConfig) -> dict[str, float]:
    """Returns the factor on the learning rate of every parameter."""
    names = [name for name, _ in model.named_parameters()]
    factors: dict[str, list[float]] = {name: [] for name in names}
    for pattern, factor in config.rates.items():
        for name in matches(names, [pattern], "optim.rates"):
            factors[name].append(factor)
    for tower, decay in (("image", config.image_layer_decay), ("text", config.text_layer_decay)):
        if decay < 1:
            for depth, group in enumerate(reversed(_layer_groups(model, tower))):
                for name in group:
                    factors[name].append(decay**depth)
    # Sorted: the product does not depend on the order of the patterns.
    return {name: math.prod(sorted(own)) for name, own in factors.items()}


def _layer_groups(model: nn.Module, tower: str) -> list[list[str]]:
    """Returns the parameter names of a tower in groups from input to output."""
    reason = "the model has no towers"
    if isinstance(model, CLIP):
        try:
            return model.layer_groups()[tower]
        except (ClipError, AttributeError, NotImplementedError) as error:
            reason = str(error) or type(error).__name__
    raise ClipTrainError(
        f"optim.{tower}_layer_decay: the groups of layers of the {tower} tower are not known ({reason}): omit it, or "
        "set optim.rates by pattern"
    )
