"""Weights of a trained model in int8 or fp8, through the torchao library.

The matrix products in the blocks of the towers are quantised, which hold nearly all weights; embeddings, norms,
convolutions, pooling and projections are not. Names of tensors stay, also for the fused projection of native attention,
which is a bare parameter.

A quantised model is for inference in this process, also with torch.compile. Save or export the model before. The state
dict can be saved with torch.save: torch.load with weights_only=True reads it after torchao is imported, and
load_state_dict(…, assign=True) loads it.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip_models.errors import ClipModelsError, first_line
from clip_models.extras import require
from clip_models.model import CLIP
from clip_models.specs import as_pair

SCHEMES = {
    "int8-weight-only": "Int8WeightOnlyConfig",
    "int8-dynamic": "Int8DynamicActivationInt8WeightConfig",
    "fp8-weight-only": "Float8WeightOnlyConfig",
    "fp8-dynamic": "Float8DynamicActivationFloat8WeightConfig",
}
"""Scheme → torchao's config. Weight-only saves memory; dynamic quantises the activations of each batch too, and saves
time with torch.compile."""
TOWERS = ("image", "text")
_FP8_PRODUCTS = (8, 9)


@dataclass(frozen=True, kw_only=True)
class QuantizationReport:
    """The quantised matrices, and the change of the features."""

    scheme: str
    layers: dict[str, int]
    """Quantised matrices of each tower."""
    bytes_before: int
    """Size of these matrices."""
    bytes_after: int
    image_cosine: float
    """Lowest cosine in the batch between the features of an image before and after."""
    text_cosine: float
    """The same for captions."""

    def __str__(self) -> str:
        layers = ", ".join(f"{count} {tower}" for tower, count in self.layers.items())
        return (
            f"{self.scheme}: {layers} matrices, {self.bytes_before / 1e6:.1f} -> {self.bytes_after / 1e6:.1f} MB;"
            f" lowest cosine to the features before: image {self.image_cosine:.5f}, text {self.text_cosine:.5f}"
        )


def quantize(
    model: CLIP,
    scheme: str,
    towers: tuple[str, ...] = TOWERS,
    *,
    image: Tensor | None = None,
    text: Tensor | None = None,
    verbose: bool = True,
) -> QuantizationReport:
    """Quantises the blocks of a model (CLIP or CoCa) in place, sets it to eval mode, and compares its features.

    `scheme`: int8-weight-only, int8-dynamic, fp8-weight-only, fp8-dynamic (on GPUs of compute capability 8.9 and up).
    `towers`: image, text or both. `image` [B, 3, H, W], normalised, and `text` [B, L] are inputs for the comparison; by
    default noise and random ids, whose cosines are lower than those of images and captions. `verbose` prints the
    report. Raises ClipModelsError, and then the model is unchanged.
    """
    library = require("torchao.quantization", "quantize", "quantisation")
    if scheme not in SCHEMES:
        raise ClipModelsError(f"scheme {scheme!r} is unknown; choose from {', '.join(SCHEMES)}")
    if not towers or not set(towers) <= set(TOWERS):
        raise ClipModelsError(f"towers {towers!r}: choose from {', '.join(TOWERS)}")
    device = model.logit_scale.device
    if scheme == "fp8-dynamic" and (device.type != "cuda" or torch.cuda.get_device_capability(device) < _FP8_PRODUCTS):
        raise ClipModelsError(
            f"fp8-dynamic needs a GPU of compute capability 8.9 or more, and the model is on {device}; choose"
            " fp8-weight-only or int8-dynamic"
        )
    found = {tower: _matrices((model.visual if tower == "image" else model.text_tower).blocks()) for tower in towers}
    for tower, matrices in found.items():
        if not matrices:
            raise ClipModelsError(f"the {tower} tower of {model.spec.name} has no linear layers in its blocks")
        if any(_is_quantized(module.get_parameter(name)) for module, name in matrices):
            raise ClipModelsError(f"the {tower} tower of {model.spec.name} is quantised already")
    model.eval()
    if image is None:
        noise = torch.Generator().manual_seed(0)
        image = torch.randn(4, 3, *as_pair(model.spec.vision.image_size), generator=noise).to(device)
    if text is None:
        config, noise = model.spec.text, torch.Generator().manual_seed(0)
        ids = torch.randint(2, config.vocab_size - 1, (4, config.context_length), generator=noise)
        end = getattr(config, "eos_id", None)
        ids[:, -1] = config.vocab_size - 1 if end is None else end
        text = ids.to(device)
    before = _features(model, image, text)

    places = [place for matrices in found.values() for place in matrices]
    originals = [module.get_parameter(name) for module, name in places]
    try:
        for module, name in places:
            setattr(module, name, _quantize_matrix(library, scheme, module.get_parameter(name)))
        after = _features(model, image, text)
    except Exception as error:
        for (module, name), original in zip(places, originals, strict=True):
            setattr(module, name, original)
        raise ClipModelsError(
            f"{scheme} is not possible for {model.spec.name} on {device}: {first_line(error)}"
        ) from error
    quantized: list[Any] = [module.get_parameter(name) for module, name in places]
    parts = [getattr(weight, name) for weight in quantized for name in weight.__tensor_flatten__()[0]]
    cosines = [F.cosine_similarity(a, b, dim=-1).min().item() for a, b in zip(before, after, strict=True)]
    report = QuantizationReport(
        scheme=scheme,
        layers={tower: len(matrices) for tower, matrices in found.items()},
        bytes_before=sum(tensor.numel() * tensor.element_size() for tensor in originals),
        bytes_after=sum(part.numel() * part.element_size() for part in parts),
        image_cosine=cosines[0],
        text_cosine=cosines[1],
    )
    if verbose:
        print(report)
    return report


def _matrices(blocks: list[nn.Module]) -> list[tuple[nn.Module, str]]:
    """Returns (module, name of its parameter) of every matrix of a linear layer.

    The fused projection of the last block is left out: if one token is pooled, it is not used as a linear layer.
    """
    places: list[tuple[nn.Module, str]] = []
    for block in blocks:
        for module in block.modules():
            if isinstance(module, nn.Linear):
                places.append((module, "weight"))
            elif module._parameters.get("in_proj_weight") is not None and block is not blocks[-1]:
                places.append((module, "in_proj_weight"))
    return places


def _quantize_matrix(library: Any, scheme: str, weight: nn.Parameter) -> nn.Parameter:
    """Returns torchao's form of the weight of a linear layer, which F.linear takes and which can be sliced."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight.detach(), requires_grad=False)
    library.quantize_(layer, getattr(library, SCHEMES[scheme])())
    if not _is_quantized(layer.weight):
        raise ClipModelsError(f"torchao leaves a matrix of {list(weight.shape)} as it is")
    return nn.Parameter(layer.weight, requires_grad=False)


def _is_quantized(weight: Tensor) -> bool:
    return type(weight.data) is not Tensor


def _features(model: CLIP, image: Tensor, text: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return [model.encode_image(image).float(), model.encode_text(text).float()]
