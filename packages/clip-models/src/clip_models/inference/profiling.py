"""The cost of an architecture: parameters, FLOPs and activations, as in OpenCLIP's table of model profiles.

Counted on the meta device, without weights. A multiply-add is two FLOPs. Convolutions, matrix products and both
products of attention are counted, masked positions included; norms, activations and additions are not. Towers are
counted with every token in every block, although `CLIP` skips tokens that nothing depends on.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from clip_models.model import build_model
from clip_models.specs import (
    CLIPTextConfig,
    HFTextConfig,
    ModelSpec,
    ResNetConfig,
    TimmConfig,
    ViTConfig,
    as_pair,
    get_model_spec,
)


@dataclass(frozen=True, kw_only=True)
class Profile:
    """One row of the table, for one image and one caption of full length."""

    model: str
    image_size: int | tuple[int, int]
    """Pixels of a side, or (height, width)."""
    image_width: int
    """Channels of the image tower: `width` of its config, or of the last features of a timm trunk."""
    text_width: int
    """Channels of the text tower."""
    embed_dim: int
    """Channels of the shared embedding."""
    mparams: float
    """Parameters of the whole model in millions, decoder and logit scale included."""
    image_mparams: float
    text_mparams: float
    gflops: float
    """10⁹ FLOPs of both towers, and of the decoder if there is one."""
    image_gflops: float
    text_gflops: float
    image_mactivations: float
    """10⁶ outputs of the counted operations."""
    text_mactivations: float


def profile(model: str | ModelSpec) -> Profile:
    """Returns the profile of a named architecture or of a spec. Raises ClipModelsError for an unknown name."""
    spec = get_model_spec(model) if isinstance(model, str) else model
    with torch.device("meta"):
        net: Any = build_model(spec).eval().requires_grad_(False)
        image = torch.empty(1, 3, *as_pair(spec.vision.image_size))
        text = torch.zeros(1, spec.text.context_length, dtype=torch.int64)
    run_image = functools.partial(net.encode_image, image)
    if isinstance(spec.vision, ViTConfig):  # here every token goes through every block
        run_image = functools.partial(net.forward_intermediates, image=image, image_indices=1)
    with torch.no_grad():
        image_flops, image_activations = _count(run_image)
        image_flops += _spared_by_pooling(spec)
        text_flops, text_activations = _count(lambda: _run_text(net, spec, text))
        flops = image_flops + text_flops
        if spec.decoder is not None:
            tokens = torch.empty(1, spec.decoder.context_length - 1, spec.decoder.width, device="meta")
            _, image_tokens = net.visual(image)
            flops += _count(lambda: net.text_decoder(image_tokens, tokens))[0]
    in_image = sum(p.numel() for p in net.visual.parameters())
    total = sum(p.numel() for p in net.parameters())
    others = ("visual.", "text_decoder.", "logit_scale", "logit_bias")
    in_text = sum(p.numel() for name, p in net.named_parameters() if not name.startswith(others))
    return Profile(
        model=spec.name,
        image_size=spec.vision.image_size,
        image_width=_width(spec.vision, net.visual),
        text_width=_width(spec.text, getattr(net, "text", net)),
        embed_dim=spec.embed_dim,
        mparams=total / 1e6,
        image_mparams=in_image / 1e6,
        text_mparams=in_text / 1e6,
        gflops=flops / 1e9,
        image_gflops=image_flops / 1e9,
        text_gflops=text_flops / 1e9,
        image_mactivations=image_activations / 1e6,
        text_mactivations=text_activations / 1e6,
    )


def _run_text(net: Any, spec: ModelSpec, text: Tensor) -> Any:
    if isinstance(spec.text, CLIPTextConfig):
        return net.forward_intermediates(text=text, text_indices=1)
    if isinstance(spec.text, HFTextConfig):
        # Without a mask, whose values the library would read.
        hidden = net.text.transformer(input_ids=text).last_hidden_state
        return net.text.proj(hidden.mean(1))
    return net.encode_text(text)


def _spared_by_pooling(spec: ModelSpec) -> int:
    """Returns the FLOPs of a ResNet's attention pooling for unused queries, which `ModifiedResNet` skips."""
    config = spec.vision
    if not isinstance(config, ResNetConfig):
        return 0
    height, width = (size // 32 for size in as_pair(config.image_size))
    others, channels = height * width, config.width * 32
    projections = channels * channels + channels * spec.embed_dim
    return 2 * others * (projections + 2 * (others + 1) * channels)


def _width(config: Any, tower: Any) -> int:
    if isinstance(config, TimmConfig):
        return int(tower.trunk.num_features)
    if isinstance(config, HFTextConfig):
        return int(tower.transformer.config.hidden_size)
    return int(getattr(config, "width", 0))


class _ActivationCounter(TorchDispatchMode):
    """Counts the outputs of the operations with a FLOP formula."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry:
            first = next((leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)), None)
            self.total += first.numel() if first is not None else 0
        return out


def _count(run: Callable[[], Any]) -> tuple[int, int]:
    """Returns (FLOPs, activations) of one call."""
    with FlopCounterMode(display=False) as flops, _ActivationCounter() as activations:
        run()
    return flops.get_total_flops(), activations.total
