"""Weights that describe themselves, and OpenCLIP's that do not.

A file of ours is plain safetensors with four entries of metadata: `format` ("pt", what other tools look for),
`clip_models.format_version`, `clip_models.spec` (the ModelSpec as JSON) and `clip_models.sha256` (of the tensors).
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from clip_models.errors import ClipModelsError
from clip_models.model import CLIP
from clip_models.specs import ModelSpec
from clip_models.tensorfiles import digest, read_tensors, write_safetensors

FORMAT_VERSION = "1"
_OURS = "clip_models."


def save_model(
    path: str | os.PathLike[str],
    model: CLIP,
    spec: ModelSpec,
    extra_metadata: Mapping[str, str] | None = None,
) -> None:
    """Write `model` and its description to one safetensors file, atomically; equal weights give equal bytes.

    `spec` may differ from `model.spec` in name, preprocessing and tokenizer, not in the network. The model is the
    CLIP module itself: take it out of DistributedDataParallel first. ClipModelsError if it is not, or if the place
    cannot be written.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ClipModelsError(f"weights are saved as .safetensors, not {path.name!r}")
    if not isinstance(model, CLIP):
        raise ClipModelsError(f"save_model takes a CLIP model, not {type(model).__name__}; unwrap it first")
    if difference := spec.describe_difference(model.spec):
        raise ClipModelsError(f"the spec {spec.name!r} does not describe the model: {difference}")
    extra = dict(extra_metadata or {})
    for key, value in extra.items():
        if key == "format" or key.startswith(_OURS) or not isinstance(value, str):
            raise ClipModelsError(f"extra metadata {key!r}: keys are other than format and {_OURS}*, values strings")
    tensors = {_plain_name(name): tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    _check_fit(spec, tensors, "the model")
    description = {
        "format": "pt",
        f"{_OURS}format_version": FORMAT_VERSION,
        f"{_OURS}spec": json.dumps(spec.to_dict()),
        f"{_OURS}sha256": digest(tensors),
    }
    write_safetensors(path, tensors, extra | description)


def load_model(
    path: str | os.PathLike[str], *, expect: str | None = None, device: str | torch.device = "cpu"
) -> tuple[CLIP, ModelSpec]:
    """(model in float32 on `device`, its spec) from a file that `save_model` wrote.

    `expect` is the architecture that the caller can use. ClipModelsError if the file is of another one, does not
    describe itself, is damaged, or does not hold exactly the tensors of its spec; there is never a half-loaded model.
    """
    path = Path(path)
    tensors, metadata = read_tensors(path)
    spec = _read_spec(path, tensors, metadata)
    if spec is None:
        raise ClipModelsError(
            f"{path} does not say what it is; load it with create_model(name, pretrained={str(path)!r})"
        )
    if expect is not None and spec.name != expect.replace("/", "-"):
        raise ClipModelsError(f"{path} holds {spec.name!r}, not {expect!r}; ask for {spec.name!r} or name another file")
    return _build(spec, tensors, path, device), spec


def load_pretrained(spec: ModelSpec, path: str | os.PathLike[str], device: str | torch.device = "cpu") -> CLIP:
    """A float32 model of the architecture `spec` with the weights of `path`: a file of ours or an OpenCLIP state dict.

    A file of ours keeps its own preprocessing and tokenizer (see `model.spec`) and is refused if its network is
    another one, if only by its activation. A plain state dict is taken at `spec`'s word.
    """
    path = Path(path)
    tensors, metadata = read_tensors(path)
    described = _read_spec(path, tensors, metadata)
    if described is not None and (difference := described.describe_difference(spec)):
        raise ClipModelsError(f"{path} holds {described.name!r}, not {spec.name!r}: {difference}; ask for that model")
    return _build(described or spec, tensors, path, device)


def _read_spec(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> ModelSpec | None:
    """The verified description of a file of ours; None for any other file."""
    version = metadata.get(f"{_OURS}format_version")
    if version is None:
        return None
    if version != FORMAT_VERSION:
        raise ClipModelsError(
            f"{path} is of format {version}, this release reads {FORMAT_VERSION}; upgrade clip-models"
        )
    try:
        spec = ModelSpec.from_dict(json.loads(metadata[f"{_OURS}spec"]))
    except (KeyError, ValueError) as error:
        raise ClipModelsError(f"{path} has no valid description: {error}") from error
    if digest(tensors) != metadata.get(f"{_OURS}sha256"):
        raise ClipModelsError(
            f"{path} is corrupted: its tensors do not have the SHA-256 that was saved; fetch it again"
        )
    return spec


def _build(spec: ModelSpec, tensors: Mapping[str, Tensor], path: Path, device: str | torch.device) -> CLIP:
    named = {_plain_name(name): tensor for name, tensor in tensors.items()}
    if len(named) < len(tensors):
        raise ClipModelsError(f"{path} holds {len(tensors) - len(named)} tensors twice, with and without a prefix")
    scale = named.get("logit_scale")
    if scale is not None and scale.shape == (1,):
        named["logit_scale"] = scale.reshape(())  # OpenCLIP's nonscalar_logit_scale
    _check_fit(spec, named, str(path))
    with torch.device("meta"):
        model = CLIP(spec)
    # A copy, because what safetensors gives is a view of the mapped file.
    model.load_state_dict(
        {name: tensor.to(device, torch.float32, copy=True) for name, tensor in named.items()}, assign=True
    )
    return model


def _plain_name(name: str) -> str:
    """`name` without the marks that DistributedDataParallel and torch.compile leave."""
    return name.removeprefix("module.").replace("_orig_mod.", "").removeprefix("module.")


def _check_fit(spec: ModelSpec, tensors: Mapping[str, Tensor], where: str) -> None:
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in CLIP(spec).state_dict().items()}
    missing = [name for name in shapes if name not in tensors]
    extra = [name for name in tensors if name not in shapes]
    misshaped = [
        f"{name} {list(tensors[name].shape)} in place of {list(shape)}"
        for name, shape in shapes.items()
        if name in tensors and tensors[name].shape != shape
    ]
    mistyped = [
        f"{name} {tensors[name].dtype}" for name in shapes if name in tensors and not tensors[name].is_floating_point()
    ]
    kinds = {"missing": missing, "extra": extra, "of another shape": misshaped, "not floating": mistyped}
    faults = [f"{len(names)} {kind} ({_first(names)})" for kind, names in kinds.items() if names]
    if faults:
        raise ClipModelsError(f"{where} does not fit {spec.name!r}: {'; '.join(faults)}")


def _first(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
