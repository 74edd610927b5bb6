"""preprocessor_config.json of transformers, to and from PreprocessConfig."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from clip_models.errors import ClipModelsError
from clip_models.specs import ModelSpec, PreprocessConfig
from clip_models.specs.preprocess import Interpolation

_RESAMPLE: dict[int, Interpolation] = {2: "bilinear", 3: "bicubic"}
"""Pillow's numbers."""


def preprocess_from_processor(processor: Mapping[str, Any], default: PreprocessConfig) -> PreprocessConfig:
    """Returns the preprocessing of CLIPImageProcessor, SiglipImageProcessor and others; `default` for absent keys.

    `size` stays that of `default`: it follows the tower. Raises ClipModelsError for what our preprocessing cannot do.
    """
    off = [key for key in ("do_resize", "do_rescale", "do_normalize") if processor.get(key) is False]
    resample = processor.get("resample", None)
    if off or resample not in (None, *_RESAMPLE):
        reason = f"{off[0]} false" if off else f"resample {resample}"
        raise ClipModelsError(f"preprocessor_config.json has {reason}, which is not supported; edit the file")
    mode = default.resize_mode
    size = processor.get("size")
    if isinstance(size, Mapping) and "height" in size:
        mode = "squash"
    elif processor.get("do_center_crop") and (isinstance(size, int) or (size and "shortest_edge" in size)):
        mode = "shortest"
    mean, std = (
        _triple(processor, key, value) for key, value in (("image_mean", default.mean), ("image_std", default.std))
    )
    return dataclasses.replace(
        default,
        mean=mean,
        std=std,
        resize_mode=mode,
        interpolation=_RESAMPLE[resample] if resample is not None else default.interpolation,
    )


def processor_config(spec: ModelSpec) -> dict[str, Any]:
    """Returns the preprocessor_config.json of `spec`. Raises ClipModelsError for resize_mode longest."""
    config = spec.preprocess
    height, width = config.size
    if config.resize_mode == "squash":
        sizes: dict[str, Any] = {
            "image_processor_type": "SiglipImageProcessor",
            "size": {"height": height, "width": width},
        }
    elif config.resize_mode == "shortest" and height == width:
        sizes = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": height}}
        sizes |= {"do_center_crop": True, "crop_size": {"height": height, "width": width}}
    else:
        raise ClipModelsError(
            f"resize_mode {config.resize_mode!r} to {height}x{width} has no counterpart among transformers' processors"
        )
    return {
        **sizes,
        "do_resize": True,
        "resample": {name: number for number, name in _RESAMPLE.items()}[config.interpolation],
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(config.mean),
        "image_std": list(config.std),
        "do_convert_rgb": True,
    }


def _triple(processor: Mapping[str, Any], key: str, default: tuple[float, float, float]) -> tuple[float, float, float]:
    value = processor.get(key)
    if value is None:
        return default
    if not isinstance(value, list | tuple) or len(value) != 3:
        raise ClipModelsError(f"preprocessor_config.json has {key} = {value!r}; it must be a list of 3")
    return float(value[0]), float(value[1]), float(value[2])
