"""The number formats of a model's weights, under OpenCLIP's names."""

import torch
from torch import nn

from clip_models.model.clip import CLIP
from clip_models.specs import HFTextConfig, TimmConfig
from clip_models.specs.values import require_choice
from clip_models.towers.image.vit import VisionTransformer
from clip_models.towers.layers import LayerNorm
from clip_models.towers.text.clip import TextLayers

_LOW = {"fp16": torch.float16, "bf16": torch.bfloat16}
PRECISIONS = ("fp32", "fp16", "bf16", "pure_fp16", "pure_bf16", "amp", "amp_bf16", "amp_bfloat16")
_PRODUCTS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight", "in_proj_bias")


def apply_precision(model: CLIP, precision: str) -> CLIP:
    """Converts the weights of a model (CLIP or CoCa) in place and returns it.

    fp32, amp, amp_bf16, amp_bfloat16: float32; the amp ones are for torch.autocast, which training uses.
    fp16, bf16: the weights of matrix products and convolutions in that type, norms and embeddings in float32. Towers of
    timm and transformers, which run in one type only, are converted completely; with a timm tower so is the rest except
    the native LayerNorms.
    pure_fp16, pure_bf16: everything in that type. Raises ClipModelsError for other names.
    """
    require_precision(precision)
    if precision.startswith("pure_"):
        return model.to(_LOW[precision.removeprefix("pure_")])
    dtype = get_cast_dtype(precision)
    if dtype is None:
        return model
    if isinstance(model.spec.vision, TimmConfig):
        model.to(dtype)
        for module in model.modules():
            if isinstance(module, LayerNorm):
                module.to(torch.float32)
        return model
    convert_weights_to_lp(model, dtype)
    if isinstance(model.spec.text, HFTextConfig):
        model.text.to(dtype)
    return model


def convert_weights_to_lp(model: nn.Module, dtype: torch.dtype = torch.float16) -> None:
    """Converts the weights of the products of the native towers; norms, embeddings and logit_scale stay."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d):
            module.to(dtype)
            continue
        names = [name for name in _PRODUCTS if name in module._parameters]
        if isinstance(module, VisionTransformer):
            names.append("proj")
        elif isinstance(module, TextLayers) and "text_projection" in module._parameters:
            names.append("text_projection")
        for name in names:
            parameter = getattr(module, name)
            if parameter is not None:
                parameter.data = parameter.data.to(dtype)


def get_cast_dtype(precision: str) -> torch.dtype | None:
    """Returns the type of the weights of products if only they are in low precision (fp16 and bf16), else None."""
    return _LOW.get(require_precision(precision))


def get_input_dtype(precision: str) -> torch.dtype | None:
    """Returns the type of the input images; None is float32."""
    return _LOW.get(require_precision(precision).removeprefix("pure_"))


def require_precision(precision: str) -> str:
    """Returns `precision`. Raises ClipModelsError for an unknown one."""
    require_choice("precision", precision, PRECISIONS)
    return precision
