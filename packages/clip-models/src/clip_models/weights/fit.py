"""Checks that tensors are those of a model: all of them, no other, in their shapes, and trained as its spec says."""

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from clip_models.errors import ClipModelsError
from clip_models.model import CLIP, build_model
from clip_models.specs import ModelSpec
from clip_models.towers.common import NoRandomInit
from clip_models.weights.convert.description import Description, another_activation
from clip_models.weights.convert.formats import Format
from clip_models.weights.convert.mismatch import describe_mismatch, find_fitting

_SIGLIP = ("visual.trunk.attn_pool.latent", "text.text_projection.bias", "logit_bias")


def build_empty(spec: ModelSpec) -> CLIP:
    """Returns the model of `spec` on the CPU with arbitrary numbers. Draws no random numbers.

    It is not on the meta device: buffers that are in no file (rotary tables, indices of relative positions) get their
    values when a tower is built.
    """
    with NoRandomInit():
        return build_model(spec)


@contextmanager
def advising(spec: ModelSpec, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Adds to an error which architectures the weights fit, unless `spec` is one of them."""
    try:
        yield
    except ClipModelsError as error:
        fitting = find_fitting(tensors)
        if not fitting or spec.name in fitting:
            raise
        raise ClipModelsError(f"{error}; these weights fit {', '.join(fitting)}: ask for that architecture") from error


def require_fit(wanted: Mapping[str, Tensor], tensors: Mapping[str, Tensor], where: str, what: str) -> None:
    """Raises ClipModelsError unless `tensors` (of `where`) are those `wanted` by `what`; both have OpenCLIP's names.

    The message has the sizes that differ, counts and the first names.
    """
    missing = [name for name in wanted if name not in tensors]
    extra = [name for name in tensors if name not in wanted]
    shared = [name for name in wanted if name in tensors]
    misshaped = [
        f"{name} {list(tensors[name].shape)} in place of {list(wanted[name].shape)}"
        for name in shared
        if tensors[name].shape != wanted[name].shape
    ]
    kinds = {"missing": missing, "extra": extra, "of another shape": misshaped}
    for is_float, kind in ((True, "not floating"), (False, "not of integers")):
        kinds[kind] = [
            f"{name} {tensors[name].dtype}"
            for name in shared
            if tensors[name].is_floating_point() != is_float == wanted[name].is_floating_point()
        ]
    if faults := [f"{len(names)} {kind} ({_first(names)})" for kind, names in kinds.items() if names]:
        raise ClipModelsError(
            f"{where} does not fit {what}: {'; '.join([*describe_mismatch(tensors, wanted), *faults])}"
        )


def require_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    """Raises ClipModelsError, with the count and the first names, if tensors are not finite in float32."""
    if broken := [name for name, tensor in tensors.items() if not tensor.float().isfinite().all()]:
        raise ClipModelsError(
            f"{where} holds NaN or infinite numbers in {len(broken)} tensors ({_first(broken)}); take weights from"
            " before the training diverged"
        )


def _first(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def check_implied(
    spec: ModelSpec,
    layout: Format,
    tensors: Mapping[str, Tensor],
    known: Description | None,
    sure_of: Collection[str],
    where: str,
) -> None:
    """Raises ClipModelsError if the weights (`tensors`, OpenCLIP's names) contradict the spec.

    OpenAI's own archives, recognised by three integers in them, use QuickGELU. SigLIP's weights, recognised by pooling,
    projection and bias, need images of mean 0.5 and std 0.5. A description, or `sure_of`, takes precedence.
    """
    described = known is not None and known.quick_gelu is not None
    if layout.name == "OpenAI" and not described and not spec.quick_gelu and "quick_gelu" not in sure_of:
        raise ClipModelsError(f"{where}: {another_activation(spec, 'their format, that of OpenAI', True)}")
    described = known is not None and known.preprocess is not None
    values = (*spec.preprocess.mean, *spec.preprocess.std)
    if (
        all(name in tensors for name in _SIGLIP)
        and any(value != 0.5 for value in values)
        and not described
        and "preprocess" not in sure_of
    ):
        raise ClipModelsError(
            f"{where} holds weights of SigLIP, trained on images with mean 0.5 and std 0.5, and {spec.name!r} has"
            f" mean {list(spec.preprocess.mean)}; ask for the SigLIP model by its name, or insist with"
            " force_preprocess_cfg"
        )


def settle_logits(spec: ModelSpec, tensors: Mapping[str, Tensor]) -> tuple[ModelSpec, dict[str, Tensor]]:
    """Returns (spec, tensors) that agree about logit_bias, with scalars of shape [].

    A learned bias is kept. A model with a bias gets zero from weights without one.
    """
    settled = dict(tensors)
    for name in ("logit_scale", "logit_bias"):
        if name in settled and settled[name].numel() == 1:
            settled[name] = settled[name].reshape(())
    if spec.init_logit_bias is None and "logit_bias" in settled:
        spec = dataclasses.replace(spec, init_logit_bias=float(settled["logit_bias"]))
    elif spec.init_logit_bias is not None and "logit_bias" not in settled:
        settled["logit_bias"] = torch.zeros(())
    return spec, settled
