"""The .npz checkpoints of big_vision, in which SigLIP and SigLIP 2 were published: a ViT with attention pooling, and a
bidirectional text transformer."""

from collections.abc import Mapping

from torch import Tensor

from clip_models.weights.convert.steps import convert_to_ours

_STACKED = "/encoderblock/"


def convert_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Converts big_vision's names to OpenCLIP's: timm's trunk under `visual.trunk.`, the text tower under `text.`.

    The blocks of a tower are one by one, `encoderblock_3`, or stacked along a first axis, `encoderblock`.
    """
    named = {}
    for name, tensor in tensors.items():
        name = name.removeprefix("params/")
        stacked = tensor if _STACKED in name and tensor.ndim else [tensor]
        for number, part in enumerate(stacked):
            named[name.replace(_STACKED, f"/encoderblock_{number}/") if stacked is tensor else name] = part
    return convert_to_ours("big_vision", named)
