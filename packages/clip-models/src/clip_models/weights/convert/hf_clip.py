"""transformers' CLIPModel and MetaClip2Model: a plain ViT and CLIP's text transformer."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from clip_models.errors import ClipModelsError
from clip_models.specs import (
    CLIP_BPE_VOCAB_SIZE,
    CLIPTextConfig,
    ModelSpec,
    PreprocessConfig,
    TokenizerConfig,
    ViTConfig,
    as_pair,
)
from clip_models.weights.convert.hf_configs import from_theirs, to_theirs, tower_config
from clip_models.weights.convert.steps import convert_to_theirs

ACTIVATIONS = {"quick_gelu": (True, False), "gelu": (False, False), "gelu_pytorch_tanh": (False, True)}
"""hidden_act → (quick_gelu, gelu_tanh)."""
_LEGACY_EOS = 2
"""With this eos_token_id CLIPModel pools the highest id; MetaClip2Model pools this id."""


def spec_from_config(config: Mapping[str, Any], name: str) -> ModelSpec:
    text = tower_config(config, "text_config", "clip")
    vision = tower_config(config, "vision_config", "clip")
    if text["hidden_act"] != vision["hidden_act"] or text["hidden_act"] not in ACTIVATIONS:
        raise ClipModelsError(
            f"config.json has hidden_act {vision['hidden_act']!r} for images and {text['hidden_act']!r} for text;"
            f" both towers take one of {', '.join(ACTIVATIONS)}"
        )
    quick_gelu, gelu_tanh = ACTIVATIONS[text["hidden_act"]]
    eos, vocab = text["eos_token_id"], text["vocab_size"]
    by_argmax = config["model_type"] == "clip" and eos in (_LEGACY_EOS, vocab - 1)
    sizes = from_theirs("vision", vision)
    head_width = sizes["width"] // sizes.pop("heads")
    return ModelSpec(
        name=name,
        embed_dim=config.get("projection_dim", 512),
        quick_gelu=quick_gelu,
        vision=ViTConfig(**sizes, head_width=head_width, gelu_tanh=gelu_tanh),
        text=CLIPTextConfig(
            **from_theirs("text", text),
            pool_type="argmax" if by_argmax else "eos",
            eos_id=None if by_argmax else eos,
            gelu_tanh=gelu_tanh,
        ),
        preprocess=PreprocessConfig(size=as_pair(vision["image_size"])),
        tokenizer=TokenizerConfig() if vocab == CLIP_BPE_VOCAB_SIZE else TokenizerConfig(kind="hf", name=name),
    )


def to_huggingface(
    model: nn.Module, spec: ModelSpec, vision: ViTConfig, text: CLIPTextConfig
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    _check_exportable(spec, vision, text)
    acts = {value: key for key, value in ACTIVATIONS.items()}
    act = acts[(spec.quick_gelu, vision.gelu_tanh and not spec.quick_gelu)]
    bpe = text.vocab_size == CLIP_BPE_VOCAB_SIZE and spec.tokenizer.kind == "clip-bpe"
    eos = text.eos_id if text.pool_type == "eos" else (text.vocab_size - 1 if bpe else _LEGACY_EOS)
    as_it_is = text.pool_type == "eos" and eos == _LEGACY_EOS
    config = {
        "model_type": "metaclip_2" if as_it_is else "clip",
        "architectures": ["MetaClip2Model" if as_it_is else "CLIPModel"],
        "projection_dim": spec.embed_dim,
        "logit_scale_init_value": 2.6592 if spec.init_logit_scale is None else spec.init_logit_scale,
        "text_config": {
            **to_theirs("text", text),
            "projection_dim": spec.embed_dim,
            "hidden_act": act,
            "pad_token_id": text.pad_id,
            "bos_token_id": eos - 1 if bpe and eos is not None else 0,
            "eos_token_id": eos,
        },
        "vision_config": {
            **to_theirs("vision", vision),
            "projection_dim": spec.embed_dim,
            "image_size": as_pair(vision.image_size)[0],
            "hidden_act": act,
        },
    }
    at_root = {name.removeprefix("text."): tensor for name, tensor in model.state_dict().items()}
    return config, convert_to_theirs("hf_clip", at_root)


def _check_exportable(spec: ModelSpec, vision: ViTConfig, text: CLIPTextConfig) -> None:
    size = as_pair(vision.image_size)
    usual = {"width", "layers", "mlp_ratio", "norm_eps", "gelu_tanh"}
    plain_vision = _only(vision, usual | {"image_size", "patch_size", "head_width", "patch_dropout"})
    plain_text = _only(text, usual | {"context_length", "vocab_size", "heads", "pad_id", "eos_id", "pool_type"})
    odd = {
        "a logit_bias": spec.init_logit_bias is not None,
        f"images of {size[0]}x{size[1]}": size[0] != size[1],
        "options of its image tower": vision != plain_vision,
        "options of its text tower": text != plain_text or text.pool_type not in ("argmax", "eos"),
        "another activation in each tower": vision.gelu_tanh != text.gelu_tanh and not spec.quick_gelu,
    }
    if found := [name for name, is_so in odd.items() if is_so]:
        raise ClipModelsError(
            f"{spec.name!r} has {found[0]}, which transformers' CLIPModel does not have; export it in another format"
        )


def _only(config: Any, names: set[str]) -> Any:
    """Returns a config with the named fields of `config` and the defaults of the others."""
    return type(config)(**{name: getattr(config, name) for name in names})
