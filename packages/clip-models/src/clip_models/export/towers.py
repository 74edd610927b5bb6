"""The two towers as modules of one input and one output, for export.

Shapes: B batch, L tokens, E embed_dim.
"""

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip_models.model import CLIP
from clip_models.specs import ModelSpec, as_pair
from clip_models.tokenizers import Tokenizer


class ImageGraph(nn.Module):
    """float32 [B, 3, H, W] → float32 [B, E].

    The input is normalised by mean and std, or, with `pixels_inside`, holds pixels on the scale 0 to 1. The output
    is L2-normalised with `l2_inside`.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: CLIP, *, pixels_inside: bool, l2_inside: bool) -> None:
        super().__init__()
        self.model = _only(model, lambda name: name == "visual")
        self.pixels_inside = pixels_inside
        self.l2_inside = l2_inside
        preprocess = model.spec.preprocess
        self.register_buffer("mean", torch.tensor(preprocess.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(preprocess.std).view(1, 3, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        if self.pixels_inside:
            image = (image - self.mean) / self.std
        features = self.model.encode_image(image, normalize=False).float()
        return F.normalize(features, dim=-1) if self.l2_inside else features


class TextGraph(nn.Module):
    """int64 [B, L] → float32 [B, E], L2-normalised with `l2_inside`; L is the context length."""

    def __init__(self, model: CLIP, *, l2_inside: bool) -> None:
        super().__init__()
        self.model = _only(model, lambda name: name not in ("visual", "text_decoder"))
        self.l2_inside = l2_inside

    def forward(self, text: Tensor) -> Tensor:
        features = self.model.encode_text(text, normalize=False).float()
        return F.normalize(features, dim=-1) if self.l2_inside else features


def _only(model: CLIP, keep: Callable[[str], bool]) -> CLIP:
    """Returns a view of `model` without the parts that a tower does not use."""
    part = copy.copy(model)
    part._modules = {name: module for name, module in model._modules.items() if keep(name)}
    part._parameters = {name: parameter for name, parameter in model._parameters.items() if keep(name)}
    return part


def sample_images(spec: ModelSpec, count: int, *, pixels_inside: bool) -> Tensor:
    """Returns inputs of ImageGraph, smooth and noisy, the same in each call: float32 [count, 3, H, W]."""
    generator = torch.Generator().manual_seed(0)
    height, width = as_pair(spec.vision.image_size)
    coarse = torch.rand(count, 3, 7, 7, generator=generator)
    smooth = F.interpolate(coarse, size=(height, width), mode="bilinear", align_corners=False)
    strength = torch.rand(count, 1, 1, 1, generator=generator) / 2
    pixels = (smooth + strength * (torch.rand(count, 3, height, width, generator=generator) - 0.5)).clamp(0, 1)
    if pixels_inside:
        return pixels
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (spec.preprocess.mean, spec.preprocess.std))
    return (pixels - mean) / std


def sample_captions(tokenizer: Tokenizer, count: int) -> Tensor:
    """Returns token ids of random captions of every length that fits, and of longer ones: int64 [count, L]."""
    generator = torch.Generator().manual_seed(1)
    words = ["a", "the", "photo", "of", "red", "blue", "two", "small", "cat", "dog", "house", "tree", "night", "sea"]
    longest = tokenizer.context_length + 8
    lengths = torch.randint(1, longest + 1, (count,), generator=generator).tolist()
    picks = [torch.randint(0, len(words), (length,), generator=generator).tolist() for length in lengths]
    return tokenizer([" ".join(words[i] for i in pick) for pick in picks])
