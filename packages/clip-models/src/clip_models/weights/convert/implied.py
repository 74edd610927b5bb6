"""Checks of weights against their spec by the tensors alone, without a description."""

import dataclasses
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from clip_models.errors import ClipModelsError
from clip_models.specs import ModelSpec
from clip_models.weights.convert.description import Description, another_activation
from clip_models.weights.convert.formats import Format

_SIGLIP = ("visual.trunk.attn_pool.latent", "text.text_projection.bias", "logit_bias")


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
