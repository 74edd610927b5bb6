"""Models by name, under OpenCLIP's function names."""

import os

import torch
from torch import nn

from clip_models.errors import ClipModelsError
from clip_models.model import CLIP
from clip_models.preprocess import EvalTransform, TrainTransform, preprocess_eval, preprocess_train
from clip_models.specs import ModelSpec, get_model_spec
from clip_models.towers import Attention, VisionTransformer
from clip_models.weights import load_pretrained

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def create_model(
    model_name: str | ModelSpec,
    pretrained: str | os.PathLike[str] | None = None,
    precision: str = "fp32",
    device: str | torch.device = "cpu",
    *,
    seed: int | None = None,
) -> CLIP:
    """A named architecture (or a spec of your own) with random weights or those of the file `pretrained`.

    `pretrained`: a file of `save_model`, or an OpenCLIP state dict as .safetensors, .pt, .pth, .bin or .ckpt.
    `precision`: fp32, or bf16 / fp16 for inference with the weights of the matrix products in that type and the rest
    in float32; to train in low precision take fp32 and torch.autocast. `seed` makes random weights repeatable, the
    same on every device, and leaves torch's generators as they were; without it they are drawn from the global one.
    Errors: ClipModelsError.
    """
    if precision not in _DTYPES:
        raise ClipModelsError(f"precision {precision!r} is unknown; choose from {', '.join(_DTYPES)}")
    spec = model_name if isinstance(model_name, ModelSpec) else get_model_spec(model_name)
    model = _initialise(spec, seed) if pretrained is None else load_pretrained(spec, pretrained)
    if precision != "fp32":
        _lower_products(model, _DTYPES[precision])
    return model.to(device)


def create_model_and_transforms(
    model_name: str | ModelSpec,
    pretrained: str | os.PathLike[str] | None = None,
    precision: str = "fp32",
    device: str | torch.device = "cpu",
    *,
    seed: int | None = None,
) -> tuple[CLIP, TrainTransform, EvalTransform]:
    """(model, preprocessing for training, preprocessing for evaluation); see `create_model`.

    A file of `save_model` brings its own preprocessing.
    """
    model = create_model(model_name, pretrained, precision, device, seed=seed)
    config = model.spec.preprocess
    return model, preprocess_train(config), preprocess_eval(config)


def create_model_from_pretrained(
    model_name: str | ModelSpec,
    pretrained: str | os.PathLike[str],
    precision: str = "fp32",
    device: str | torch.device = "cpu",
) -> tuple[CLIP, EvalTransform]:
    """(model in eval mode, preprocessing for evaluation) with the weights of a file, never random ones."""
    model = create_model(model_name, pretrained, precision, device)
    return model.eval(), preprocess_eval(model.spec.preprocess)


def _initialise(spec: ModelSpec, seed: int | None) -> CLIP:
    if seed is None:
        return CLIP(spec)
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would also reset the generators of the accelerators.
        torch.default_generator.manual_seed(seed)
        return CLIP(spec)


def _lower_products(model: CLIP, dtype: torch.dtype) -> None:
    """Weights of the matrix products to `dtype`; norms, embeddings and logit_scale stay, as in OpenCLIP."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.to(dtype)
        elif isinstance(module, Attention):
            module.in_proj_weight.data = module.in_proj_weight.data.to(dtype)
            module.in_proj_bias.data = module.in_proj_bias.data.to(dtype)
        elif isinstance(module, VisionTransformer):
            module.proj.data = module.proj.data.to(dtype)
    model.text_projection.data = model.text_projection.data.to(dtype)
