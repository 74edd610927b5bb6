"""`clip-models classify`: images against labels."""

import json
from dataclasses import dataclass, field

from clip_core import ImageMode

DEFAULT = ("ViT-B-32", "laion2b_s34b_b79k")


@dataclass(frozen=True, kw_only=True)
class Config:
    """The weights of a tag are fetched on first use, also those of the default model."""

    images: tuple[str, ...] = field(default=(), metadata={"positional": True})
    """images"""
    labels: tuple[str, ...]
    """what the images may show"""
    template: str = "{}"
    """the text of a label, with {} for the label: "a photo of {}" """
    model: str = ""
    """name of the architecture, or hf-hub:org/repo, or local-dir:folder; without it ViT-B-32 of LAION-2B"""
    pretrained: str = ""
    """tag or file of the weights"""
    quick_gelu: bool = False
    """the weights were trained with QuickGELU"""
    precision: str = "fp32"
    """precision of the model"""
    device: str = "auto"
    """cpu, cuda, …; auto is the accelerator if there is one"""
    image_mode: ImageMode = "standard"
    """how images become RGB: standard applies the EXIF orientation, scales 16-bit and float values and puts
    transparency on white; openclip does neither, as OpenCLIP"""
    json: bool = False
    """print JSON instead of a table"""


def run(config: Config) -> int:
    from clip_core import load_image
    from clip_models.errors import ClipModelsError
    from clip_models.inference.classify import check_labels, classify

    if not config.images:
        raise ClipModelsError("classify needs at least one image, as in clip-models classify image.jpg --labels a b")
    check_labels(config.labels, config.template)
    model, pretrained = config.model, config.pretrained
    if not model:
        if pretrained:
            raise ClipModelsError(f"--pretrained {pretrained} needs --model, the architecture of the weights")
        model, pretrained = DEFAULT
    images = [load_image(path, image_mode=config.image_mode) for path in config.images]  # fails before the model loads
    options = {name: getattr(config, name) for name in ("template", "precision", "device", "quick_gelu", "image_mode")}
    found = classify(images, config.labels, model=model, pretrained=pretrained, **options)
    if config.json:
        rows = zip(config.images, found, strict=True)
        said = [{"image": path, "labels": [vars(score) for score in scores]} for path, scores in rows]
        print(json.dumps(said, indent=2))
        return 0
    width = max(map(len, ("label", *config.labels)))
    for path, scores in zip(config.images, found, strict=True):
        if len(config.images) > 1:
            print(f"{path}:")
        print(f"{'label':<{width}}  probability  similarity")
        for score in scores:
            print(f"{score.label:<{width}}  {score.probability:>11.1%}  {score.similarity:>10.4f}")
    return 0
