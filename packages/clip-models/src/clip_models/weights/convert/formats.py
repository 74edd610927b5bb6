"""Which layout a set of tensors is in, told from its names alone."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from torch import Tensor

from clip_models.specs import ModelSpec
from clip_models.weights.convert import big_vision, hf_clip, hf_siglip, mobileclip
from clip_models.weights.convert.openclip import OPENAI_SIZES, drop_sizes, to_layout_of


@dataclass(frozen=True)
class Format:
    """One layout."""

    name: str
    markers: tuple[str, ...]
    """Names of tensors; a file that has one of them is of this format."""
    convert: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] | None = None
    """To OpenCLIP's names, the text tower in either place; None where they are."""


FORMATS = (
    Format("big_vision", ("img/embedding/kernel", "params/img/embedding/kernel"), big_vision.convert_tensors),
    Format("MobileCLIP", (mobileclip.FASTVIT_MARKER, mobileclip.HYBRID_MARKER), mobileclip.convert_tensors),
    Format("Hugging Face SigLIP", ("vision_model.head.probe",), hf_siglip.convert_tensors),
    Format("Hugging Face CLIP", ("vision_model.pre_layrnorm.weight",), hf_clip.convert_tensors),
    Format("OpenAI", OPENAI_SIZES),
)
"""The first whose marker is there; none of them is OpenCLIP."""
OPENCLIP = Format("OpenCLIP", ())


def detect(names: Collection[str]) -> Format:
    """The format of tensors with these names, without the marks of training."""
    return next((known for known in FORMATS if any(marker in names for marker in known.markers)), OPENCLIP)


def convert(tensors: Mapping[str, Tensor], spec: ModelSpec) -> dict[str, Tensor]:
    """Tensors with plain names in any known format, in the layout that the model of `spec` has.

    Nothing is computed but transpositions and concatenations; what has no place keeps its name.
    """
    known = detect(tensors)
    converted = known.convert(tensors) if known.convert else tensors
    return to_layout_of(spec, drop_sizes(converted))
