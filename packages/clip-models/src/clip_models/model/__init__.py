"""Models made of towers, and the number formats of their weights."""

import torch

from clip_models.model.clip import CLIP
from clip_models.model.coca import CoCa
from clip_models.specs import ModelSpec
from clip_models.towers.common import NoRandomInit

__all__ = ["CLIP", "CoCa", "build_model", "build_shapes"]


def build_model(spec: ModelSpec) -> CLIP:
    """Returns the model of a spec with random weights: a CoCa if it has a decoder.

    Raises ClipModelsError if a tower needs an extra that is missing.
    """
    return CLIP(spec) if spec.decoder is None else CoCa(spec)


def build_shapes(spec: ModelSpec) -> CLIP:
    """Returns the model of a spec on the meta device: names and shapes, in no memory. Draws no random numbers.

    A tower that reads values while it is built is built on the CPU first.
    """
    try:
        with torch.device("meta"), NoRandomInit():
            return build_model(spec)
    except (NotImplementedError, RuntimeError):
        with NoRandomInit():
            return build_model(spec).to("meta")
