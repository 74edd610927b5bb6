"""Models made of towers, and the number formats of their weights."""

from clip_models.model.build import build_model
from clip_models.model.clip import CLIP
from clip_models.model.coca import CoCa

__all__ = ["CLIP", "CoCa", "build_model"]
