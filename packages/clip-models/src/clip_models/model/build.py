"""From a spec to its model."""

from clip_models.model.clip import CLIP
from clip_models.model.coca import CoCa
from clip_models.specs import ModelSpec


def build_model(spec: ModelSpec) -> CLIP:
    """The model of a spec, a CoCa where it has a decoder, with random weights.

    ClipModelsError where a tower needs an extra that is missing.
    """
    return CLIP(spec) if spec.decoder is None else CoCa(spec)
