"""Checks that tensors are those of a model: all of them, no other, in their shapes."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor

from clip_models.errors import ClipModelsError
from clip_models.model import CLIP, build_model
from clip_models.specs import ModelSpec
from clip_models.towers.common import NoRandomInit
from clip_models.weights.convert.mismatch import describe_mismatch, find_fitting


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
