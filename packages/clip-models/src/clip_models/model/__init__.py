"""Models made of towers, and the number formats of their weights."""

from clip_models.model.clip import CLIP
from clip_models.model.coca import CoCa
from clip_models.specs import ModelSpec

__all__ = ["CLIP", "CoCa", "build_model"]


def build_model(spec: ModelSpec) -> CLIP:
    """Returns the model of a spec with random weights: a CoCa if it has a decoder.

    Raises ClipModelsError if a tower needs an extra that is missing.
    """
    return CLIP(spec) if spec.decoder is None else CoCa(spec)
