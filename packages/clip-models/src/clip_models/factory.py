"""Models by name, under OpenCLIP's function names.

Three things differ on purpose. Weights that do not fit the architecture, its activation included, are an error and not
a warning. The preprocessing always follows the weights, and is in `model.spec`. Building a model needs no network: the
default weights of a single tower are loaded on request only.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, overload

import torch

from clip_core import ImageMode
from clip_models.errors import ClipModelsError, first_line
from clip_models.model import CLIP, build_model, build_shapes
from clip_models.model.drawing import draw_model
from clip_models.model.precision import apply_precision, require_precision
from clip_models.preprocess.image import EvalTransform, TrainTransform, preprocess_eval, preprocess_train
from clip_models.specs import ModelSpec, get_model_spec, list_models, to_open_clip_config
from clip_models.specs.augmentation import AugmentationConfig
from clip_models.specs.overrides import forced_parts, override_spec
from clip_models.weights.hub import download_pretrained
from clip_models.weights.load import load_into, load_pretrained
from clip_models.weights.locate import Source, is_model_source, locate, settle
from clip_models.weights.towers import load_default_tower, load_tower

Place = str | os.PathLike[str]
Device = str | torch.device


def create_model(
    model_name: str | ModelSpec,
    pretrained: Place | None = None,
    load_weights: bool = True,
    precision: str = "fp32",
    device: Device = "cpu",
    *,
    seed: int | None = None,
    jit: bool = False,
    force_quick_gelu: bool = False,
    force_custom_text: bool = False,
    force_patch_dropout: float | None = None,
    force_image_size: int | tuple[int, int] | None = None,
    force_preprocess_cfg: Mapping[str, Any] | None = None,
    force_context_length: int | None = None,
    pretrained_image: bool = False,
    pretrained_text: bool = False,
    pretrained_image_path: Place | None = None,
    pretrained_text_path: Place | None = None,
    cache_dir: Place | None = None,
    output_dict: bool | None = None,
    require_pretrained: bool = False,
    weights_only: bool = True,
    **model_kwargs: Any,
) -> CLIP:
    """Returns a model in training mode: a CLIP, or a CoCa, which is one too. Raises ClipModelsError.

    `model_name`: an architecture, a spec, or a whole model: "hf-hub:org/repo", "hf-hub:org/repo@revision",
    "local-dir:/folder", a file that describes itself, or its URL.
    `pretrained`: weights for the architecture: a tag, any of the forms above, a file or a folder. Weights of another
    architecture or activation are refused. `load_weights=False` uses the description of the source and random weights.
    `precision`: see `apply_precision`. `seed` makes random weights reproducible, the same on every device, and does not
    change torch's generators; without it they are drawn from the global one. On the device "meta" nothing is drawn.
    `force_*` and `model_kwargs` (keys of ModelSpec; the tables vision and text are merged) change the spec before it is
    built; position embeddings of the weights are resized to a forced image size or context length.
    `force_preprocess_cfg` overrides the preprocessing of the weights.
    `pretrained_image`, `pretrained_text`: default weights of a timm trunk or a Hugging Face text encoder, from their
    libraries, if no others are loaded. `pretrained_image_path`, `pretrained_text_path`: weights of one tower.
    `output_dict` makes `forward` return a dict. `require_pretrained` refuses random weights.
    """
    if jit:
        raise ClipModelsError("jit=True is not supported; use torch.compile, or clip-models export")
    if not weights_only:
        raise ClipModelsError("weights_only=False would run code from the file; leave it out")
    require_precision(precision)
    device = _device(device)
    pretrained_text = model_kwargs.pop("pretrained_hf", pretrained_text)
    spec, source = _find(model_name, pretrained, cache_dir, load_weights, force_quick_gelu)
    if require_pretrained and (source is None or source.weights is None):
        raise ClipModelsError(
            f"require_pretrained is set, but no weights were named for {spec.name}: name a tag or a file as pretrained"
        )
    forced: dict[str, Any] = {
        "custom_text": force_custom_text,
        "patch_dropout": force_patch_dropout,
        "image_size": force_image_size,
        "context_length": force_context_length,
    }
    spec = override_spec(spec, changes=model_kwargs, **forced)
    if source is not None and source.weights is not None:
        sure_of = forced_parts({**forced, "quick_gelu": force_quick_gelu}, model_kwargs)
        if source.tag is not None:
            sure_of |= {"quick_gelu", "preprocess"}  # checked in _find
        model = load_pretrained(spec, source.weights, sure_of=sure_of)
    else:
        if device.type == "meta":
            model = build_shapes(spec)
        else:
            model = build_model(spec) if seed is None else draw_model(spec, seed)
        if pretrained_image and pretrained_image_path is None:
            load_default_tower(model, "image")
        if pretrained_text and pretrained_text_path is None:
            load_default_tower(model, "text")
    for tower, path in (("image", pretrained_image_path), ("text", pretrained_text_path)):
        if path is not None:
            load_tower(model, tower, path)
    model.spec = override_spec(model.spec, preprocess=force_preprocess_cfg)
    if output_dict is not None:
        model.output_dict = output_dict
    return apply_precision(model, precision).to(device)


def create_model_and_transforms(
    model_name: str | ModelSpec,
    pretrained: Place | None = None,
    load_weights: bool = True,
    precision: str = "fp32",
    device: Device = "cpu",
    *,
    image_mean: Sequence[float] | None = None,
    image_std: Sequence[float] | None = None,
    image_interpolation: str | None = None,
    image_resize_mode: str | None = None,
    aug_cfg: AugmentationConfig | Mapping[str, Any] | None = None,
    image_mode: ImageMode = "standard",
    force_preprocess_cfg: Mapping[str, Any] | None = None,
    **options: Any,
) -> tuple[CLIP, TrainTransform, EvalTransform]:
    """Returns (model, preprocessing for training, preprocessing for evaluation); other options as in `create_model`.

    The preprocessing is that of the weights; `image_mean` to `image_resize_mode` and `force_preprocess_cfg` override
    it. `image_mode` says how images become RGB: standard, or openclip for OpenCLIP's pixels of images with an EXIF
    orientation, transparency, a palette or other than 8 bits.
    """
    named = {"mean": image_mean, "std": image_std, "interpolation": image_interpolation}
    named["resize_mode"] = image_resize_mode
    given = {key: value for key, value in named.items() if value is not None}
    options["force_preprocess_cfg"] = {**(force_preprocess_cfg or {}), **given}
    model = create_model(model_name, pretrained, load_weights, precision, device, **options)
    config = model.spec.preprocess
    return model, preprocess_train(config, aug_cfg, image_mode), preprocess_eval(config, image_mode)


@overload
def create_model_from_pretrained(
    model_name: str | ModelSpec,
    pretrained: Place | None = None,
    precision: str = "fp32",
    device: Device = "cpu",
    *,
    return_transform: Literal[False],
    **options: Any,
) -> CLIP: ...


@overload
def create_model_from_pretrained(
    model_name: str | ModelSpec,
    pretrained: Place | None = None,
    precision: str = "fp32",
    device: Device = "cpu",
    *,
    return_transform: Literal[True] = True,
    **options: Any,
) -> tuple[CLIP, EvalTransform]: ...


def create_model_from_pretrained(
    model_name: str | ModelSpec,
    pretrained: Place | None = None,
    precision: str = "fp32",
    device: Device = "cpu",
    *,
    return_transform: bool = True,
    **options: Any,
) -> CLIP | tuple[CLIP, EvalTransform]:
    """Returns (model in eval mode, preprocessing for evaluation), or the model alone without `return_transform`.

    Random weights are refused. The other options are those of `create_model_and_transforms`.
    """
    options["require_pretrained"] = True
    model, _, transform = create_model_and_transforms(
        model_name, pretrained, precision=precision, device=device, **options
    )
    return (model.eval(), transform) if return_transform else model.eval()


def load_checkpoint(
    model: CLIP, checkpoint_path: Place, strict: bool = True, weights_only: bool = True, device: Device = "cpu"
) -> None:
    """Loads the weights of a local file, in any format that `create_model` reads, into `model` on its device.

    An error leaves the model unchanged. `strict` and `weights_only` must be True, and `device` has no effect: they
    are parameters of OpenCLIP's function.
    """
    if not (strict and weights_only):
        raise ClipModelsError(
            "load_checkpoint requires that every tensor fits and runs no code: leave strict and weights_only out"
        )
    load_into(model, checkpoint_path)


def get_model_config(model_name: str) -> dict[str, Any] | None:
    """Returns OpenCLIP's `model_cfg` of an architecture or a model source; None for an unknown name."""
    if is_model_source(model_name):
        spec = settle(None, locate(model_name, load_weights=False))
    elif model_name.replace("/", "-") in list_models():
        spec = get_model_spec(model_name)
    else:
        return None
    return dict(to_open_clip_config(spec)["model_cfg"])


def get_model_preprocess_cfg(model: CLIP) -> dict[str, Any]:
    """Returns the preprocessing of the model's weights as plain data."""
    return dict(model.spec.preprocess.to_dict())


def get_model_tokenize_cfg(model: CLIP) -> dict[str, Any]:
    """Returns the model's context length and vocabulary size."""
    return {"context_length": model.spec.text.context_length, "vocab_size": model.spec.text.vocab_size}


def _device(device: Device) -> torch.device:
    """Returns the device. Checked before anything is read."""
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ClipModelsError(
            f"device {str(device)!r} cannot be used ({first_line(error)}); use cpu, or an accelerator of this machine"
        ) from error


def _find(
    model_name: str | ModelSpec, pretrained: Place | None, cache_dir: Place | None, load_weights: bool, quick_gelu: bool
) -> tuple[ModelSpec, Source | None]:
    """Returns the spec, before the other overrides, and its weights."""
    sure_of = ("quick_gelu",) if quick_gelu else ()
    if isinstance(model_name, str) and is_model_source(model_name):
        if pretrained:
            raise ClipModelsError(f"{model_name} has its own weights: leave pretrained={os.fspath(pretrained)!r} out")
        source = locate(model_name, cache_dir=cache_dir, load_weights=load_weights)
        spec = settle(None, source)
        return (replace(spec, quick_gelu=True) if quick_gelu else spec), source
    spec = model_name if isinstance(model_name, ModelSpec) else get_model_spec(model_name)
    spec = replace(spec, quick_gelu=True) if quick_gelu else spec
    if not pretrained:
        return spec, None
    source = locate(pretrained, spec.name, cache_dir, load_weights)
    if source.tag is None:
        return settle(spec, source, sure_of), source
    # A tag is not overruled: to use its weights with another activation, load the file.
    spec = settle(spec, source)
    weights = download_pretrained(source.tag, cache_dir=cache_dir) if load_weights else None
    return spec, replace(source, weights=weights)
