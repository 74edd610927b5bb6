"""The metadata of our files, in which they describe themselves.

Such a file is plain safetensors with four entries of metadata: `format` ("pt", what other tools look for),
`clip_models.format_version`, `clip_models.spec` (the ModelSpec as JSON) and `clip_models.sha256` (of the tensors).
"""

import json
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from clip_models.errors import ClipModelsError
from clip_models.specs import ModelSpec
from clip_models.weights.tensorfiles import digest

FORMAT_VERSION = "1"
OURS = "clip_models."


def read_spec(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> ModelSpec | None:
    """Returns the verified description of a file of ours; None for any other file."""
    if f"{OURS}format_version" not in metadata:
        return None
    spec = parse_spec(path, metadata)
    if digest(tensors) != metadata.get(f"{OURS}sha256"):
        raise ClipModelsError(
            f"{path} is corrupted: its tensors do not have the SHA-256 that was saved; fetch it again"
        )
    return spec


def parse_spec(path: Path, metadata: Mapping[str, str]) -> ModelSpec:
    """Returns the description in the metadata. Raises ClipModelsError if it is damaged."""
    version = metadata.get(f"{OURS}format_version")
    if version != FORMAT_VERSION:
        raise ClipModelsError(f"{path} has format {version}, this release reads {FORMAT_VERSION}; upgrade clip-models")
    try:
        return ModelSpec.from_dict(json.loads(metadata[f"{OURS}spec"]))
    except (KeyError, ValueError) as error:
        raise ClipModelsError(f"{path} has no valid description: {error}") from error
