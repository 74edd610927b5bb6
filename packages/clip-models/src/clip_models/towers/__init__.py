"""Image and text towers, and the layers that the native ones are made of."""

from torch import nn

from clip_models.specs import CLIPTextConfig, HFTextConfig, ModelSpec, ModernTextConfig, ResNetConfig, ViTConfig


def build_vision(spec: ModelSpec) -> nn.Module:
    """The image tower of a spec, with random weights. ClipModelsError where it needs an extra that is missing."""
    config = spec.vision
    if isinstance(config, ViTConfig):
        from clip_models.towers.image.vit import VisionTransformer

        return VisionTransformer(config, spec.embed_dim, spec.quick_gelu)
    if isinstance(config, ResNetConfig):
        from clip_models.towers.image.resnet import ModifiedResNet

        return ModifiedResNet(config, spec.embed_dim, spec.quick_gelu)
    from clip_models.towers.image.timm import TimmTower

    return TimmTower(config, spec.embed_dim)


def build_text(spec: ModelSpec) -> nn.Module:
    """The text tower of a spec, with random weights. ClipModelsError where it needs an extra that is missing."""
    config = spec.text
    if isinstance(config, CLIPTextConfig):
        from clip_models.towers.text.clip import TextTransformer

        return TextTransformer(config, spec.embed_dim, spec.quick_gelu)
    if isinstance(config, ModernTextConfig):
        from clip_models.towers.text.modern import ModernTextTransformer

        return ModernTextTransformer(config, spec.embed_dim)
    assert isinstance(config, HFTextConfig)
    from clip_models.towers.text.hf import HFTextTower

    return HFTextTower(config, spec.embed_dim)
