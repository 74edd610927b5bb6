"""Recognises the layout of tensors by their names, and converts them to OpenCLIP's."""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from clip_models.specs import ModelSpec
from clip_models.weights.convert import big_vision, mobileclip
from clip_models.weights.convert.steps import convert_to_ours


@dataclass(frozen=True)
class Format:
    """One layout."""

    name: str
    markers: tuple[str, ...]
    """Names of tensors; a file with one of them has this format."""
    convert: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] | None = None
    """Converts to OpenCLIP's names, the text tower in either place; None if they are OpenCLIP's."""


OPENAI_SIZES = ("input_resolution", "context_length", "vocab_size")
"""Integers in OpenAI's archives beside the weights, and in no others."""
FORMATS = (
    Format("big_vision", ("img/embedding/kernel", "params/img/embedding/kernel"), big_vision.convert_tensors),
    Format("MobileCLIP", (mobileclip.FASTVIT_MARKER, mobileclip.HYBRID_MARKER), mobileclip.convert_tensors),
    Format("Hugging Face SigLIP", ("vision_model.head.probe",), partial(convert_to_ours, "hf_siglip")),
    Format("Hugging Face CLIP", ("vision_model.pre_layrnorm.weight",), partial(convert_to_ours, "hf_clip")),
    Format("OpenAI", OPENAI_SIZES),
)
"""The first with a matching marker counts; others are OpenCLIP's."""
OPENCLIP = Format("OpenCLIP", ())
_TEXT_AT_ROOT = re.compile(
    r"(token_embedding|transformer|ln_final)\.|(positional_embedding|cls_emb|text_projection(\.weight|\.bias)?)$"
)


def detect(names: Collection[str]) -> Format:
    """Returns the format of tensors with these names, without the marks of training."""
    return next((known for known in FORMATS if any(marker in names for marker in known.markers)), OPENCLIP)


def convert(tensors: Mapping[str, Tensor], spec: ModelSpec) -> dict[str, Tensor]:
    """Returns tensors with plain names in any known format in the layout of the model of `spec`.

    Tensors are only transposed and concatenated; those without a counterpart keep their name.
    """
    known = detect(tensors)
    named = dict(known.convert(tensors) if known.convert else tensors)
    for name in OPENAI_SIZES:
        named.pop(name, None)
    at_root = "positional_embedding" in named or "token_embedding.weight" in named
    if at_root and not spec.text_at_root:
        return {f"text.{name}" if _TEXT_AT_ROOT.match(name) else name: tensor for name, tensor in named.items()}
    if not at_root and spec.text_at_root:
        return {name.removeprefix("text."): tensor for name, tensor in named.items()}
    return named
