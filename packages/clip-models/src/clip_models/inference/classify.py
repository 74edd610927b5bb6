"""Zero-shot classification: images against labels."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image

from clip_core import ImageMode
from clip_models.errors import ClipModelsError
from clip_models.inference.encoder import Encoder
from clip_models.model import CLIP


@dataclass(frozen=True)
class LabelScore:
    """The score of one image and one label."""

    label: str
    probability: float
    """Among the labels: their probabilities add up to 1. With a logit bias (SigLIP): of this label alone."""
    similarity: float
    """Cosine of image and text."""


def classify(
    images: Sequence[Image.Image],
    labels: Sequence[str],
    *,
    model: str | CLIP,
    pretrained: str | None = None,
    template: str = "{}",
    precision: str = "fp32",
    device: str = "auto",
    quick_gelu: bool = False,
    image_mode: ImageMode = "standard",
) -> list[list[LabelScore]]:
    """Returns the labels of each image, the most probable first. Raises ClipModelsError.

    `model`: a name with its `pretrained` weights, or a CLIP. `template`: the text of a label, with {} for the label.
    `quick_gelu`: the named weights were trained with QuickGELU. `image_mode`: standard or openclip, see
    clip_core.ImageMode.
    """
    check_labels(labels, template)
    encoder = Encoder.load(model, pretrained, precision, device, quick_gelu=quick_gelu, image_mode=image_mode)
    if not images:
        return []
    image = encoder.encode_images(images)
    text = encoder.encode_texts([template.replace("{}", label) for label in labels])
    with torch.inference_mode():
        cosines = image @ text.T
        logits = cosines * encoder.model.logit_scale.float().exp()
        bias = getattr(encoder.model, "logit_bias", None)
        shares = logits.softmax(dim=-1) if bias is None else (logits + bias.float()).sigmoid()
    return [
        sorted(map(LabelScore, labels, *pair), key=lambda score: -score.similarity)
        for pair in zip(shares.tolist(), cosines.tolist(), strict=True)
    ]


def check_labels(labels: Sequence[str], template: str) -> None:
    """Raises ClipModelsError for empty or repeated labels, and for a template without {}."""
    if isinstance(labels, str) or not labels:
        raise ClipModelsError(f"labels {labels!r} must be a list of at least one")
    if empty := [label for label in labels if not label.strip()]:
        raise ClipModelsError(f"label {empty[0]!r} is empty; give it a text or leave it out")
    if twice := [label for label in labels if labels.count(label) > 1]:
        raise ClipModelsError(f"label {twice[0]!r} is given twice; name each once")
    if "{}" not in template:
        raise ClipModelsError(f"template {template!r} has no place for the label; add {{}}")
