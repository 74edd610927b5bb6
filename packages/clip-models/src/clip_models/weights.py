"""Weights that describe themselves, and those of others that do not.

A file of ours is plain safetensors with four entries of metadata: `format` ("pt", what other tools look for),
`clip_models.format_version`, `clip_models.spec` (the ModelSpec as JSON) and `clip_models.sha256` (of the tensors).
"""

import json
import os
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from clip_models.convert.description import Description, describe_beside, describe_spec, reconcile
from clip_models.convert.formats import convert, detect
from clip_models.convert.implied import check_implied, settle_logits
from clip_models.convert.mismatch import describe_mismatch, find_fitting
from clip_models.convert.prefixes import plain_names
from clip_models.convert.resizing import resize_to
from clip_models.errors import ClipModelsError, local_path
from clip_models.hub import WEIGHTS_NAMES
from clip_models.model import CLIP, build_model
from clip_models.specs import ModelSpec
from clip_models.tensorfiles import WEIGHTS_SUFFIXES, digest, read_names, read_tensors, write_safetensors
from clip_models.towers.common import NoRandomInit

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
        if key == "format" or key.startswith(_OURS) or not isinstance(value, str):
            raise ClipModelsError(f"extra metadata {key!r}: keys are other than format and {_OURS}*, values strings")
    tensors = {name: t.detach().cpu().contiguous() for name, t in plain_names(model.state_dict(), "the model").items()}
    require_fit(build_empty(spec).state_dict(), tensors, "the model", repr(spec.name))
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
    return model_from_tensors(spec, tensors, str(path)).to(device), spec


def load_pretrained(
    spec: ModelSpec,
    path: str | os.PathLike[str],
    *,
    sure_of: Collection[str] = (),
    entry: str | None = None,
) -> CLIP:
    """A float32 model of the architecture `spec` with the weights of `path`: a file in any known format or a folder.

    What the weights say about themselves, in their metadata, in open_clip_config.json or transformers' config.json
    beside them, or as a file that the registry knows, is compared with `spec`: another network, or another activation,
    is a ClipModelsError. Their preprocessing and tokenizer are taken in place of the defaults of the architecture (see
    `model.spec`), and an error against others. Weights that nothing is known about are taken at the word of `spec`.

    `sure_of` names what the caller insists on against all that: quick_gelu, preprocess, tokenizer, custom_text,
    patch_dropout, and image_size or context_length, which resize the positions. `entry` is a state dict of a training
    checkpoint other than the model's own, "state_dict_ema" for one.

    A checkpoint with a logit_bias gives a model with one, also where `spec` has none (`init_logit_bias` of its spec is
    then the bias); the other way round the bias becomes zero, which changes no logit. ClipModelsError for damaged
    files, and for weights that are missing, left over or of another shape; there is never a half-loaded model.
    """
    path = find_weights(Path(path))
    tensors, metadata = read_tensors(path)
    named = plain_names(tensors, str(path), entry=entry)
    known = _describe(path, tensors, metadata, named)
    spec = reconcile(spec, known, sure_of, str(path))
    return model_from_tensors(spec, named, str(path), sure_of=sure_of, known=known)


def load_into(model: CLIP, path: str | os.PathLike[str]) -> None:
    """Put the weights of a file or folder into `model`, where its tensors are; errors as of `load_pretrained`, before
    the model is touched."""
    loaded = load_pretrained(model.spec, path)
    require_fit(model.state_dict(), loaded.state_dict(), str(path), repr(model.spec.name))
    model.load_state_dict(loaded.state_dict())


def describe_source(path: str | os.PathLike[str]) -> ModelSpec | None:
    """The whole spec of the weights in a file or folder, as they or the files beside them tell it; None if they do not.

    Reads no weights. ClipModelsError if there are none, or if a description is damaged.
    """
    path = find_weights(Path(path))
    if not path.is_file():
        raise ClipModelsError(f"there is no weights file {path}")
    names, metadata = read_names(path)
    if f"{_OURS}spec" in metadata:
        return _parse_spec(path, metadata)
    known = describe_beside(path, None if names is None else detect(names))
    return known.spec if known else None


def find_weights(path: Path) -> Path:
    """The weights file of a folder, by its usual names or because it is the only one; a file is itself."""
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
    """The model of `spec` with these weights, in any known layout; `where` names them in errors.

    Floating weights become float32, integers stay what the model has. See `load_pretrained` for the rest.
    """
    named = plain_names(tensors, where)
    asked = spec
    spec, converted = settle_logits(spec, convert(named, spec))
    model = build_empty(spec)
    with _advising(spec, converted):
        converted = resize_to(model, spec, converted, sure_of, where)
        require_fit(model.state_dict(), converted, where, repr(spec.name))
    check_implied(asked, detect(named), converted, known, sure_of, where)
    # Copies, because what a file gives is a view of the mapped file.
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


def build_empty(spec: ModelSpec) -> CLIP:
    """The model of `spec` on the CPU with arbitrary numbers in place of random weights.

    Not on the meta device: the buffers that no file holds (rotary tables, indices of relative positions) get their
    values when a tower is built. Draws no random numbers.
    """
    with NoRandomInit():
        return build_model(spec)


def _describe(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], named: Mapping[str, Tensor]
) -> Description | None:
    ours = _read_spec(path, tensors, metadata)
    if ours is not None:
        return describe_spec("its metadata", ours, ours=True)
    return describe_beside(path, detect(named))


def _read_spec(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> ModelSpec | None:
    """The verified description of a file of ours; None for any other file."""
    if f"{_OURS}format_version" not in metadata:
        return None
    spec = _parse_spec(path, metadata)
    if digest(tensors) != metadata.get(f"{_OURS}sha256"):
        raise ClipModelsError(
            f"{path} is corrupted: its tensors do not have the SHA-256 that was saved; fetch it again"
        )
    return spec


def _parse_spec(path: Path, metadata: Mapping[str, str]) -> ModelSpec:
    version = metadata.get(f"{_OURS}format_version")
    if version != FORMAT_VERSION:
        raise ClipModelsError(
            f"{path} is of format {version}, this release reads {FORMAT_VERSION}; upgrade clip-models"
        )
    try:
        return ModelSpec.from_dict(json.loads(metadata[f"{_OURS}spec"]))
    except (KeyError, ValueError) as error:
        raise ClipModelsError(f"{path} has no valid description: {error}") from error


@contextmanager
def _advising(spec: ModelSpec, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Adds to an error which architectures the weights fit, unless that is the one of `spec`."""
    try:
        yield
    except ClipModelsError as error:
        fitting = find_fitting(tensors)
        if not fitting or spec.name in fitting:
            raise
        raise ClipModelsError(f"{error}; these weights fit {', '.join(fitting)}: ask for that architecture") from error


def require_fit(wanted: Mapping[str, Tensor], tensors: Mapping[str, Tensor], where: str, what: str) -> None:
    """ClipModelsError, with the sizes that differ, counts and the first names, unless `tensors` (of `where`) are those
    `wanted` by `what`; both have OpenCLIP's names."""
    missing = [name for name in wanted if name not in tensors]
    extra = [name for name in tensors if name not in wanted]
    shared = [name for name in wanted if name in tensors]
    misshaped = [
        f"{name} {list(tensors[name].shape)} in place of {list(wanted[name].shape)}"
        for name in shared
        if tensors[name].shape != wanted[name].shape
    ]
    floating = {True: "not floating", False: "not of integers"}
    mistyped: dict[bool, list[str]] = {True: [], False: []}
    for name in shared:
        is_float = wanted[name].is_floating_point()
        if tensors[name].is_floating_point() != is_float:
            mistyped[is_float].append(f"{name} {tensors[name].dtype}")
    kinds = {"missing": missing, "extra": extra, "of another shape": misshaped}
    kinds |= {floating[is_float]: names for is_float, names in mistyped.items()}
    if faults := [f"{len(names)} {kind} ({_first(names)})" for kind, names in kinds.items() if names]:
        raise ClipModelsError(
            f"{where} does not fit {what}: {'; '.join([*describe_mismatch(tensors, wanted), *faults])}"
        )


def require_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    """ClipModelsError, with the count and the first names, if tensors hold numbers that are none in float32."""
    if broken := [name for name, tensor in tensors.items() if not tensor.float().isfinite().all()]:
        raise ClipModelsError(
            f"{where} holds NaN or infinite numbers in {len(broken)} tensors ({_first(broken)}); take weights from"
            " before the training diverged"
        )


def _first(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
