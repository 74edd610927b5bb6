"""`clip-models export`: a model for another runtime."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Config:
    """Writes a new folder with the model, its preprocessing and its tokenizer, and checks it against the model."""

    model: str
    """name of the architecture, hf-hub:org/repo or local-dir:folder"""
    output: str
    """the folder to make"""
    to: str = "onnx"
    """the form to write: onnx, torch-export, hf, open-clip, or module:class of a user-defined one"""
    pretrained: str = ""
    """a tag, or a file or folder with weights"""
    precision: Literal["fp32", "fp16", "bf16"] = "fp32"
    """type of the weights and products"""
    pixels_inside: bool = False
    """put mean and std into the image tower, which then takes pixels from 0 to 1"""
    l2_inside: bool = False
    """put the L2 normalisation of the features into the towers"""
    pairs: int = 256
    """images and captions that the exported form is checked on"""
    quick_gelu: bool = False
    """the weights were trained with QuickGELU"""


def run(config: Config) -> int:
    from clip_models.errors import local_path
    from clip_models.export.exporting import export_model
    from clip_models.export.formats import FORMATS
    from clip_models.factory import create_model

    FORMATS.check(config.to)  # before the model: it fails sooner
    output = local_path(config.output, "output")
    model = create_model(
        config.model, config.pretrained or None, force_quick_gelu=config.quick_gelu, require_pretrained=True
    )
    options = {name: getattr(config, name) for name in ("precision", "pixels_inside", "l2_inside", "pairs")}
    check = export_model(model, config.to, output, **options)
    print(
        f"{config.output}: {config.to}, {config.precision}; {check.runtime} on {check.pairs} pairs:"
        f" largest difference of a cosine {check.max_cosine_difference:.1e} (accepted: {check.tolerance:.0e})"
    )
    return 0
