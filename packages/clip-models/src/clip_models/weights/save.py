"""Saves weights in files that describe themselves."""

import json
import os
from collections.abc import Mapping

from torch import nn

from clip_models.errors import ClipModelsError, local_path
from clip_models.model import CLIP
from clip_models.specs import ModelSpec
from clip_models.weights.convert.prefixes import plain_names
from clip_models.weights.fit import build_empty, require_fit
from clip_models.weights.metadata import FORMAT_VERSION, OURS
from clip_models.weights.tensorfiles import digest, write_safetensors


def save_model(
    path: str | os.PathLike[str], model: CLIP, spec: ModelSpec, extra_metadata: Mapping[str, str] | None = None
) -> None:
    """Writes `model` and its description to one safetensors file, atomically; equal weights give equal bytes.

    `spec` may differ from `model.spec` in name, preprocessing and tokenizer, not in the network. Unwrap a model in
    DistributedDataParallel first. Raises ClipModelsError if that was not done, or if the file cannot be written.
    """
    path = local_path(path, "the file of the weights")
    if path.suffix != ".safetensors":
        raise ClipModelsError(f"weights are saved as .safetensors, not {path.name!r}")
    if not isinstance(model, nn.Module) or not isinstance(getattr(model, "spec", None), ModelSpec):
        raise ClipModelsError(f"save_model takes a CLIP model, not {type(model).__name__}; unwrap it first")
    if any(type(tensor).__module__.startswith("torchao") for tensor in model.parameters()):
        raise ClipModelsError("save_model takes the weights before quantize; save first, or torch.save the state dict")
    if difference := spec.describe_difference(model.spec):
        raise ClipModelsError(f"the spec {spec.name!r} does not describe the model: {difference}")
    extra = dict(extra_metadata or {})
    for key, value in extra.items():
        if key == "format" or key.startswith(OURS) or not isinstance(value, str):
            raise ClipModelsError(f"extra metadata {key!r}: keys are other than format and {OURS}*, values strings")
    tensors = {name: t.detach().cpu().contiguous() for name, t in plain_names(model.state_dict(), "the model").items()}
    require_fit(build_empty(spec).state_dict(), tensors, "the model", repr(spec.name))
    description = {
        "format": "pt",
        f"{OURS}format_version": FORMAT_VERSION,
        f"{OURS}spec": json.dumps(spec.to_dict()),
        f"{OURS}sha256": digest(tensors),
    }
    write_safetensors(path, tensors, extra | description)
