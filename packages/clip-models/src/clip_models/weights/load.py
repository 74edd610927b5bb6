"""Loads weights from files that describe themselves, and from others."""

import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clip_models.errors import ClipModelsError
from clip_models.model import CLIP
from clip_models.specs import ModelSpec
from clip_models.weights.convert.description import Description, describe_beside, describe_spec, reconcile
from clip_models.weights.convert.formats import convert, detect
from clip_models.weights.convert.huggingface import spec_from_huggingface
from clip_models.weights.convert.prefixes import plain_names
from clip_models.weights.convert.resizing import resize_to
from clip_models.weights.fit import advising, build_empty, check_implied, require_finite, require_fit, settle_logits
from clip_models.weights.hub import WEIGHTS_NAMES
from clip_models.weights.metadata import OURS, parse_spec, read_spec
from clip_models.weights.tensorfiles import WEIGHTS_SUFFIXES, read_names, read_tensors


def load_model(
    path: str | os.PathLike[str], *, expect: str | None = None, device: str | torch.device = "cpu"
) -> tuple[CLIP, ModelSpec]:
    """Returns (model in float32 on `device`, its spec) from a file that `save_model` wrote.

    `expect` is the architecture that the caller can use. Raises ClipModelsError if the file is of another one, does not
    describe itself, is damaged, or does not hold exactly the tensors of its spec.
    """
    path = Path(path)
    tensors, metadata = read_tensors(path)
    spec = read_spec(path, tensors, metadata)
    if spec is None:
        raise ClipModelsError(f"{path} has no description; load it with create_model(name, pretrained={str(path)!r})")
    if expect is not None and spec.name != expect.replace("/", "-"):
        raise ClipModelsError(f"{path} holds {spec.name!r}, not {expect!r}; ask for {spec.name!r} or name another file")
    return model_from_tensors(spec, tensors, str(path)).to(device), spec


def load_pretrained(
    spec: ModelSpec, path: str | os.PathLike[str], *, sure_of: Collection[str] = (), entry: str | None = None
) -> CLIP:
    """Returns a float32 model of the architecture `spec` with the weights of a file in any known format, or a folder.

    The description of the weights, in their metadata, in open_clip_config.json or transformers' config.json beside
    them, or in the registry, is compared with `spec`: another network or activation is an error. Their preprocessing
    and tokenizer replace the defaults of the architecture in `model.spec`, and contradict others. Weights without a
    description are used as `spec` says.

    `sure_of` names what the caller insists on against that: quick_gelu, preprocess, tokenizer, custom_text,
    patch_dropout, and image_size or context_length, which resize the positions. `entry` is a state dict of a training
    checkpoint other than the model's own, such as "state_dict_ema".

    A checkpoint with a logit_bias gives a model with one, and its spec an `init_logit_bias`; a model with a bias gets
    zero from a checkpoint without one, which changes no logit. Raises ClipModelsError for damaged files, and for
    weights that are missing, left over or of another shape.
    """
    path = find_weights(Path(path))
    tensors, metadata = read_tensors(path)
    named = plain_names(tensors, str(path), entry=entry)
    ours = read_spec(path, tensors, metadata)
    known = describe_spec("its metadata", ours, ours=True) if ours else describe_beside(path, detect(named))
    spec = reconcile(spec, known, sure_of, str(path))
    return model_from_tensors(spec, named, str(path), sure_of=sure_of, known=known)


def load_into(model: CLIP, path: str | os.PathLike[str]) -> None:
    """Loads the weights of a file or folder into `model`, on its device. An error leaves the model unchanged."""
    loaded = load_pretrained(model.spec, path)
    require_fit(model.state_dict(), loaded.state_dict(), str(path), repr(model.spec.name))
    model.load_state_dict(loaded.state_dict())


def describe_source(path: str | os.PathLike[str]) -> ModelSpec | None:
    """Returns the spec in a file of weights or beside it; None if there is none. Reads no weights.

    Raises ClipModelsError if there are no weights, or if a description is damaged.
    """
    path = find_weights(Path(path))
    if not path.is_file():
        raise ClipModelsError(f"there is no weights file {path}")
    names, metadata = read_names(path)
    if f"{OURS}spec" in metadata:
        return parse_spec(path, metadata)
    known = describe_beside(path, None if names is None else detect(names))
    return known.spec if known else None


def find_weights(path: Path) -> Path:
    """Returns the weights file of a folder, by its usual names or as the only one; a file is returned as it is."""
    if not path.is_dir():
        return path
    for name in WEIGHTS_NAMES:
        if (path / name).is_file():
            return path / name
    found = sorted(p.name for p in path.iterdir() if p.name.endswith(WEIGHTS_SUFFIXES))
    if len(found) == 1:
        return path / found[0]
    if not found:
        raise ClipModelsError(f"there are no weights in {path}; weights are read from {', '.join(WEIGHTS_SUFFIXES)}")
    names = ", ".join(found[:5]) + (", …" if len(found) > 5 else "")
    parts = [name for name in found if re.search(r"-\d+-of-\d+\.", name)]
    raise ClipModelsError(
        f"{path} holds parts of weights ({names}) without their {parts[0].partition('-')[0]}*.index.json; fetch it too"
        if parts
        else f"{path} holds several weights files ({names}); name one of them"
    )


def model_from_tensors(
    spec: ModelSpec,
    tensors: Mapping[str, Tensor],
    where: str,
    *,
    sure_of: Collection[str] = (),
    known: Description | None = None,
) -> CLIP:
    """Returns the model of `spec` with these weights, in any known layout; `where` names them in errors.

    Floating weights become float32. See `load_pretrained` for the rest.
    """
    named = plain_names(tensors, where)
    asked = spec
    spec, converted = settle_logits(spec, convert(named, spec))
    model = build_empty(spec)
    with advising(spec, converted):
        converted = resize_to(model, spec, converted, sure_of, where)
        require_fit(model.state_dict(), converted, where, repr(spec.name))
    check_implied(asked, detect(named), converted, known, sure_of, where)
    # Copies, because the tensors of a file are views of the mapped file.
    wanted = {
        name: tensor.to(
            torch.float32 if tensor.is_floating_point() else tensor.dtype,
            copy=True,
            memory_format=torch.contiguous_format,
        )
        for name, tensor in converted.items()
    }
    require_finite(wanted, where)
    # Weights that two modules share have to stay one tensor.
    tied = sum(1 for _ in model.named_parameters(remove_duplicate=False)) > sum(1 for _ in model.named_parameters())
    model.load_state_dict(wanted, assign=not tied)
    return model


def from_huggingface(
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    processor: Mapping[str, Any] | None = None,
    name: str = "from-huggingface",
) -> CLIP:
    """Returns our model with the weights of one of transformers' (`model.config.to_dict()`, `model.state_dict()`).

    Raises ClipModelsError as `spec_from_huggingface`, and for tensors that do not fit the config.
    """
    return model_from_tensors(spec_from_huggingface(config, processor, name), tensors, "the state dict")
