"""Apple's MobileCLIP v1: FastViT or a hybrid ViT as timm names it, and CLIP's text transformer."""

import bisect
import re
from collections.abc import Mapping

import torch
from torch import Tensor

FASTVIT_MARKER = "image_encoder.model.patch_embed.0.rbr_conv.0.conv.weight"
HYBRID_MARKER = "image_encoder.model.patch_emb.0.block.conv.weight"

_IMAGE, _TEXT = "image_encoder.model.", "text_encoder."

_TEXT_NAMES = (
    (r"^projection_layer$", "text_projection"),
    (r"^embedding_layer\.", "token_embedding."),
    (r"^positional_embedding\.pos_embed\.pos_embed$", "positional_embedding"),
    (r"^final_layer_norm\.", "ln_final."),
    (r"^transformer\.", "transformer.resblocks."),
    (r"\.pre_norm_mha\.0\.", ".ln_1."),
    (r"\.pre_norm_mha\.1\.qkv_proj\.", ".attn.in_proj_"),
    (r"\.pre_norm_mha\.1\.", ".attn."),
    (r"\.pre_norm_ffn\.0\.", ".ln_2."),
    (r"\.pre_norm_ffn\.1\.", ".mlp.c_fc."),
    (r"\.pre_norm_ffn\.4\.", ".mlp.c_proj."),
)
_HYBRID_NAMES = (
    (r"^patch_emb\.", "patch_embed.backbone."),
    (r"\.block\.conv\.", ".conv."),
    (r"\.block\.norm\.", ".bn."),
    (r"^post_transformer_norm\.", "norm."),
    (r"^transformer\.", "blocks."),
    (r"\.pre_norm_mha\.0\.", ".norm1."),
    (r"\.pre_norm_mha\.1\.qkv_proj\.", ".attn.qkv."),
    (r"\.pre_norm_mha\.1\.out_proj\.", ".attn.proj."),
    (r"\.pre_norm_ffn\.0\.", ".norm2."),
    (r"\.pre_norm_ffn\.1\.", ".mlp.fc1."),
    (r"\.pre_norm_ffn\.4\.", ".mlp.fc2."),
    (r"^pos_embed\.pos_embed\.pos_embed$", "pos_embed"),
    (r"^classifier\.proj$", "head.weight"),
)
_FASTVIT_NAMES = (
    (r"^patch_embed\.", "stem."),
    (r"rbr_conv", "conv_kxk"),
    (r"rbr_scale", "conv_scale"),
    (r"rbr_skip", "identity"),
    (r"conv_exp", "final_conv"),
    (r"lkb_origin", "large_conv"),
    (r"convffn", "mlp"),
    (r"se\.reduce", "se.fc1"),
    (r"se\.expand", "se.fc2"),
    (r"(layer_scale(_\d+)?)$", r"\1.gamma"),
    (r"^head\.proj$", "head.fc.weight"),
)


def convert_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Apple's names → OpenCLIP's: timm's trunk under `visual.trunk.`, the text tower under `text.`.

    The image projection is a matrix there and timm's classifier here, whose bias becomes zeros.
    """
    hybrid = HYBRID_MARKER in tensors
    stage_ends = sorted({int(m[1]) for name in tensors if (m := re.match(_IMAGE + r"network\.(\d+)\.proj\.", name))})
    converted: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.startswith(_TEXT):
            new = "text." + _rename(name.removeprefix(_TEXT), _TEXT_NAMES)
            # [1, 1, L, D] there
            converted[new] = tensor.flatten(0, -2) if new == "text.positional_embedding" else tensor
        elif name.startswith(_IMAGE):
            new = _rename(name.removeprefix(_IMAGE), _HYBRID_NAMES if hybrid else _FASTVIT_NAMES)
            new = f"visual.trunk.{_into_stages(new, stage_ends)}"
            if new.endswith((".head.weight", ".head.fc.weight")):
                tensor = tensor.T
                converted[new.removesuffix("weight") + "bias"] = torch.zeros(tensor.shape[0])
            elif new == "visual.trunk.pos_embed":
                tensor = tensor.squeeze(0)
            converted[new] = tensor
        else:
            converted[name] = tensor
    return converted


def _rename(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def _into_stages(name: str, stage_ends: list[int]) -> str:
    """FastViT's flat `network.N` → timm's stages, which a downsampling (`proj`) begins."""
    match = re.match(r"network\.(\d+)\.(.*)", name)
    if not match:
        return name
    number, rest = int(match[1]), match[2]
    stage = f"stages.{bisect.bisect_right(stage_ends, number)}"
    if rest.startswith("proj."):
        return f"{stage}.downsample.{rest}"
    if rest.startswith("pe."):
        return f"{stage}.pos_emb.pos_enc.{rest.removeprefix('pe.')}"
    return f"{stage}.blocks.{rest}"
