"""Apple's MobileCLIP v1: FastViT or a hybrid ViT as timm names it, and CLIP's text transformer."""

import bisect
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from clip_models.tables import read_table

FASTVIT_MARKER = "image_encoder.model.patch_embed.0.rbr_conv.0.conv.weight"
HYBRID_MARKER = "image_encoder.model.patch_emb.0.block.conv.weight"

_IMAGE, _TEXT = "image_encoder.model.", "text_encoder."


def convert_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Converts Apple's names to OpenCLIP's: timm's trunk under `visual.trunk.`, the text tower under `text.`.

    The image projection is a matrix there and timm's classifier here, whose bias becomes zeros.
    """
    hybrid = HYBRID_MARKER in tensors
    stage_ends = sorted({int(m[1]) for name in tensors if (m := re.match(_IMAGE + r"network\.(\d+)\.proj\.", name))})
    converted: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.startswith(_TEXT):
            new = "text." + _rename(name.removeprefix(_TEXT), "text")
            # [1, 1, L, D] there
            converted[new] = tensor.flatten(0, -2) if new == "text.positional_embedding" else tensor
        elif name.startswith(_IMAGE):
            new = _rename(name.removeprefix(_IMAGE), "hybrid" if hybrid else "fastvit")
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


def _rename(name: str, part: str) -> str:
    for pattern, replacement in read_table("mobileclip")[part]:
        name = re.sub(pattern, replacement, name)
    return name


def _into_stages(name: str, stage_ends: list[int]) -> str:
    """Converts FastViT's flat `network.N` to timm's stages, which begin with a downsampling (`proj`)."""
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
