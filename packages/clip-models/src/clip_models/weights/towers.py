"""Loads the weights of one tower: from a file, or the default ones of its library."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from clip_models.errors import ClipModelsError, first_line
from clip_models.extras import require
from clip_models.model import CLIP
from clip_models.specs import HFTextConfig, ModelSpec, TimmConfig
from clip_models.weights.convert.prefixes import plain_names
from clip_models.weights.fit import require_finite, require_fit
from clip_models.weights.tensorfiles import read_tensors

_PREFIXES = {"image": "visual.", "text": "text."}


def load_tower(model: CLIP, tower: str, path: str | os.PathLike[str]) -> None:
    """Loads a file's weights into the image or the text tower.

    The file holds the tensors of the tower or of a whole model. Raises ClipModelsError, and leaves the model unchanged,
    unless it has every tensor of the tower in its shape and no other.
    """
    path = Path(path)
    tensors, _ = read_tensors(path)
    prefix = _PREFIXES[tower]
    full = {name.removeprefix(prefix): name for name in model.state_dict() if _belongs(name, tower)}
    roots = {name.split(".")[0] for name in full}
    part = _part(plain_names(tensors, str(path), roots=roots), tower)
    found = {full.get(name, _PREFIXES["image"] * (tower == "image") + name): part[name] for name in part}
    wanted = {name: model.state_dict()[name] for name in full.values()}
    require_fit(wanted, found, str(path), f"the {tower} tower of {model.spec.name!r}")
    require_finite(found, str(path))
    model.load_state_dict(found, strict=False)


def load_default_tower(model: CLIP, tower: str) -> None:
    """Fetches the weights that timm or transformers has for the trunk or the encoder, and loads them into the tower.

    The projection to the shared embedding stays random. The towers of this package have no default weights and stay
    unchanged, as in OpenCLIP.
    """
    spec: ModelSpec = model.spec
    if tower == "image" and isinstance(spec.vision, TimmConfig):
        timm = require("timm", "timm", f"the image tower of {spec.name}")
        donor = _fetch(lambda: timm.create_model(spec.vision.model_name, pretrained=True), spec.vision.model_name)
        _take_over(model.visual.trunk, donor, spec.vision.model_name)
    if tower == "text" and isinstance(spec.text, HFTextConfig):
        transformers = require("transformers", "hf", f"the text tower of {spec.name}")
        name = spec.text.model_name
        donor = _fetch(lambda: transformers.AutoModel.from_pretrained(name, trust_remote_code=False), name)
        if donor.config.is_encoder_decoder:
            donor = donor.get_encoder()
        _take_over(model.text.transformer, donor, name)


def _fetch(load: Any, name: str) -> Any:
    try:
        return load()
    except Exception as error:  # of the library, its HTTP client or the file
        raise ClipModelsError(
            f"the default weights of {name} cannot be loaded ({type(error).__name__}: {first_line(error)}); leave"
            " pretrained_image and pretrained_text out, or name files"
        ) from error


def _take_over(trunk: nn.Module, donor: nn.Module, name: str) -> None:
    """Loads the donor's tensors, except those of its own head and pooler."""
    mine = trunk.state_dict()
    theirs = {key: tensor for key, tensor in donor.state_dict().items() if key in mine}
    fitting = {key: tensor for key, tensor in theirs.items() if tensor.shape == mine[key].shape}
    heads = ("head.", "pooler.", "fc.", "classifier.")
    left = [key for key in mine if key not in fitting and not key.startswith(heads)]
    if left:
        raise ClipModelsError(f"the default weights of {name} lack {len(left)} tensors of the tower ({left[0]}, …)")
    trunk.load_state_dict(fitting, strict=False)


def _part(tensors: Mapping[str, Tensor], tower: str) -> dict[str, Tensor]:
    prefix = _PREFIXES[tower]
    if any(name.startswith(prefix) for name in tensors):
        return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    if tower == "image" or not any(name.startswith(_PREFIXES["image"]) for name in tensors):
        return dict(tensors)
    return {name: tensor for name, tensor in tensors.items() if _belongs(name, "text")}


def _belongs(name: str, tower: str) -> bool:
    if tower == "image":
        return name.startswith(_PREFIXES["image"])
    return not name.startswith((_PREFIXES["image"], "logit_", "text_decoder."))
