"""Low-rank adapters in a model (LoRA), by peft: which layers get one, their initial values, and the merged model.

An adapted linear layer `x` becomes `x.base_layer`, which is frozen, beside `x.lora_A.default` [rank, in] and
`x.lora_B.default` [out, rank]. B is zero at first, so the model begins as it was.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from clip_core.config import fingerprint
from clip_core.suggest import did_you_mean
from clip_models import CLIP
from clip_models.towers.layers import Attention
from clip_train.errors import ClipTrainError
from clip_train.lora import LoraConfig

_A, _B, _BASE = ".lora_A.default.weight", ".lora_B.default.weight", ".base_layer."
_FUSED = "in_proj"
_GROUPS = {"attention": ("attention",), "mlp": ("mlp",), "all": ("attention", "mlp")}


class LinearAttention(Attention):
    """The attention of the native towers with its fused product as a linear layer, which peft can adapt.

    It takes over the tensors of `attention`.
    """

    def __init__(self, attention: Attention) -> None:
        nn.Module.__init__(self)
        self.heads, self.causal = attention.heads, attention.causal
        rows, width = attention.in_proj_weight.shape
        self.in_proj = nn.Linear(width, rows, device="meta")
        self.in_proj.weight, self.in_proj.bias = attention.in_proj_weight, attention.in_proj_bias
        self.out_proj = attention.out_proj
        self.train(attention.training)

    @property
    def in_proj_weight(self) -> Tensor:  # type: ignore[override]
        """The weights with the product of the adapter, for what multiplies by parts of them (`at`)."""
        layer: Any = self.in_proj
        product = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        weight: Tensor = layer.base_layer.weight + layer.scaling["default"] * product
        return weight

    @property
    def in_proj_bias(self) -> Tensor:  # type: ignore[override]
        layer: Any = self.in_proj
        bias: Tensor = layer.bias
        return bias

    def qkv(self, x: Tensor) -> Tensor:
        qkv: Tensor = self.in_proj(x)
        return qkv

    def at(self, x_BLD: Tensor, token_B: Tensor, mask: Tensor | None = None) -> Tensor:
        layer: Any = self.in_proj
        if self.training and isinstance(layer.lora_dropout["default"], nn.Dropout):
            # Dropout leaves out inputs of the product, which the weights of `in_proj_weight` cannot express.
            y_BLD: Tensor = self(x_BLD, mask)
            return y_BLD[torch.arange(x_BLD.shape[0], device=x_BLD.device), token_B]
        return super().at(x_BLD, token_B, mask)


def add_adapters(model: CLIP, config: LoraConfig, *, seed: int) -> None:
    """Freezes the model and puts an adapter into each layer that the config names, in place.

    The values of an adapter are drawn from the seed and its name: A uniformly as in peft, B zero. Batch norms keep
    their statistics. Raises ClipTrainError for a pattern that matches no layer, and for a tower without such layers.
    """
    from peft import LoraConfig as Options
    from peft import inject_adapter_in_model

    names = choose_layers(model, config)
    model.requires_grad_(False)
    model.visual.freeze_locked_statistics()
    for name in names:
        owner, _, layer = name.rpartition(".")
        if layer == _FUSED and isinstance(attention := model.get_submodule(owner), Attention):
            model.set_submodule(owner, LinearAttention(attention))
    # A regular expression: peft takes a name in a list for the end of other names, too.
    options = Options(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]  # it is only divided by the rank
        lora_dropout=config.dropout,
        target_modules="|".join(map(re.escape, names)),
    )
    inject_adapter_in_model(options, model)
    found = adapted(model)
    assert sorted(found) == sorted(names), "peft has adapted other layers than those that were named"
    for name, layer in found.items():
        generator = torch.Generator().manual_seed(int(fingerprint(["lora", seed, name])[:15], 16))
        nn.init.kaiming_uniform_(layer.lora_A["default"].weight.data, a=math.sqrt(5), generator=generator)
    for scalar in (model.logit_scale, model.logit_bias) if config.logit_scale else ():
        if scalar is not None:
            scalar.requires_grad_(True)


def choose_layers(model: CLIP, config: LoraConfig) -> list[str]:
    """Returns the names of the layers that the config names. The fused product of an attention is its `in_proj`.

    Raises ClipTrainError for a pattern that matches no layer, and for a tower without layers of the group.
    """
    layers = {tower: _linear_layers(model, tower) for tower in config.towers}
    if not isinstance(config.targets, str):
        names = [name for found in layers.values() for name in found]
        chosen = {name for pattern in config.targets for name in _matching(pattern, names)}
        return [name for name in names if name in chosen]
    chosen_layers: list[str] = []
    for tower, found in layers.items():
        some = [name for name, group in found.items() if group in _GROUPS[config.targets]]
        if not some:
            others = sorted({group for group in found.values() if group})
            advice = f"its blocks have: {', '.join(others)}" if others else "its blocks have no linear layers"
            raise ClipTrainError(
                f"model.lora.targets = {config.targets!r}: the {tower} tower of {model.spec.name!r} has no such "
                f"layers; {advice}; choose others, or leave the tower out of model.lora.towers"
            )
        chosen_layers += some
    return chosen_layers


def _linear_layers(model: CLIP, tower: str) -> dict[str, str]:
    """Returns the linear layers of a tower by name, each with its group: attention or mlp, or "" outside the blocks."""
    blocks: list[nn.Module] = (model.visual if tower == "image" else model.text_tower).blocks()
    groups: dict[int, str] = {}
    for block in blocks:
        _sort_layers(block, "mlp", groups)
    found = {}
    for name, module in model.named_modules():
        owner = name.partition(".")[0]
        if owner in ("visual", "text_decoder", "text"):
            inside = owner == ("visual" if tower == "image" else "text")
        else:  # the text tower is at the root
            inside = tower == "text"
        if inside and _is_linear(module):
            found[f"{name}.{_FUSED}" if isinstance(module, Attention) else name] = groups.get(id(module), "")
    return found


def _sort_layers(module: nn.Module, group: str, groups: dict[int, str]) -> None:
    """Notes the group of each layer under a module: that of the nearest class named an attention or an MLP."""
    for child in module.children():
        kind = type(child).__name__.lower()
        own = "mlp" if "mlp" in kind else "attention" if "attention" in kind or "attn" in kind else group
        if _is_linear(child):
            groups[id(child)] = own
        _sort_layers(child, own, groups)


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | Attention)


def _matching(pattern: str, names: list[str]) -> list[str]:
    some = [name for name in names if fnmatchcase(name, pattern)]
    if not some:
        forms = dict.fromkeys(form for name in names for form in _forms(name))
        hint = did_you_mean(pattern, forms, f"there are {', '.join(names[:3])}, …", cutoff=0.5, spell=repr)
        raise ClipTrainError(
            f"model.lora.targets: the pattern {pattern!r} matches no linear layer of the towers; {hint}"
        )
    return some


def _forms(name: str) -> Iterator[str]:
    """Yields the patterns that a user may have meant by a name: of its ends, and of all blocks."""
    parts = name.split(".")
    yield from (f"*.{'.'.join(parts[start:])}" for start in range(len(parts) - 1, 0, -1))
    yield ".".join("*" if part.isdecimal() else part for part in parts)
    yield name


def adapted(model: nn.Module) -> dict[str, Any]:
    """Returns the layers with an adapter by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(getattr(module, "lora_A", None), nn.ModuleDict)
    }


def summary(model: nn.Module) -> dict[str, int]:
    """Returns what the log says of a model with adapters: their number, and the parameters that are trained of all."""
    counts = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return {
        "layers": len(adapted(model)),
        "trained": sum(count for count, trained in counts if trained),
        "parameters": sum(count for count, _ in counts),
    }


def merged(tensors: Mapping[str, Tensor], config: LoraConfig) -> dict[str, Tensor]:
    """Returns the state dict of the plain model of a state dict with adapters, whose products are added in float32."""
    plain = {}
    for name, tensor in tensors.items():
        if name.endswith((_A, _B)):
            continue
        if _BASE not in name:
            plain[name] = tensor
            continue
        layer, _, kind = name.rpartition(_BASE)
        if kind == "weight":
            product = tensors[layer + _B].float() @ tensors[layer + _A].float()
            tensor = (tensor.float() + config.alpha / config.rank * product).to(tensor.dtype)
        plain[f"{layer}_{kind}" if layer.endswith(f".{_FUSED}") else f"{layer}.{kind}"] = tensor
    return plain
