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
from clip_models.weights.convert.steps import (
    Step,
    convert_to_ours,
    convert_to_theirs,
    count_blocks,
    move,
    move_layer,
    transpose,
)

MODEL_TYPES = ("clip", "metaclip_2")
ACTIVATIONS = {"quick_gelu": (True, False), "gelu": (False, False), "gelu_pytorch_tanh": (False, True)}
"""hidden_act → (quick_gelu, gelu_tanh)."""
_LEGACY_EOS = 2
"""With this eos_token_id CLIPModel pools the highest id, whatever it is; MetaClip2Model takes it as it is."""

_TEXT_DEFAULTS = {
    "vocab_size": 49408, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12,
    "num_attention_heads": 8, "max_position_embeddings": 77, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
    "eos_token_id": 49407,
}  # fmt: skip
_VISION_DEFAULTS = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "image_size": 224, "patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
}  # fmt: skip


def spec_from_config(config: Mapping[str, Any], name: str) -> ModelSpec:
    text = tower_config(config, "text_config", _TEXT_DEFAULTS)
    vision = tower_config(config, "vision_config", _VISION_DEFAULTS)
    if text["hidden_act"] != vision["hidden_act"] or text["hidden_act"] not in ACTIVATIONS:
        raise ClipModelsError(
            f"config.json has hidden_act {vision['hidden_act']!r} for pictures and {text['hidden_act']!r} for text;"
            f" both towers take one of {', '.join(ACTIVATIONS)}"
        )
    quick_gelu, gelu_tanh = ACTIVATIONS[text["hidden_act"]]
    eos, vocab = text["eos_token_id"], text["vocab_size"]
    by_argmax = config["model_type"] == "clip" and eos in (_LEGACY_EOS, vocab - 1)
    return ModelSpec(
        name=name,
        embed_dim=config.get("projection_dim", 512),
        quick_gelu=quick_gelu,
        vision=ViTConfig(
            image_size=vision["image_size"],
            patch_size=vision["patch_size"],
            width=vision["hidden_size"],
            layers=vision["num_hidden_layers"],
            head_width=vision["hidden_size"] // vision["num_attention_heads"],
            mlp_ratio=mlp_ratio(vision["intermediate_size"], vision["hidden_size"]),
            norm_eps=vision["layer_norm_eps"],
            gelu_tanh=gelu_tanh,
        ),
        text=CLIPTextConfig(
            context_length=text["max_position_embeddings"],
            vocab_size=vocab,
            width=text["hidden_size"],
            heads=text["num_attention_heads"],
            layers=text["num_hidden_layers"],
            mlp_ratio=mlp_ratio(text["intermediate_size"], text["hidden_size"]),
            pool_type="argmax" if by_argmax else "eos",
            eos_id=None if by_argmax else eos,
            norm_eps=text["layer_norm_eps"],
            gelu_tanh=gelu_tanh,
        ),
        preprocess=PreprocessConfig(size=as_pair(vision["image_size"])),
        tokenizer=TokenizerConfig() if vocab == CLIP_BPE_VOCAB_SIZE else TokenizerConfig(kind="hf", name=name),
    )


def tower_config(config: Mapping[str, Any], key: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """One tower's part of a config.json, which leaves out what is transformers' default; older files repeat their
    values under `<key>_dict`, which wins. Of the known keys every value is of its default's type."""
    given = {k: v for part in (key, f"{key}_dict") for k, v in (config.get(part) or {}).items() if v is not None}
    merged = {**defaults, **given}
    for name, default in defaults.items():
        kinds = (int, float) if isinstance(default, float) else type(default)
        if not isinstance(merged[name], kinds):
            raise ClipModelsError(f"config.json has {key}.{name} = {merged[name]!r}, which is not converted")
    return merged


def mlp_ratio(hidden: int, width: int) -> float:
    """The ratio whose product with `width`, cut to an integer, is `hidden`."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else (hidden + 0.5) / width


def convert_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """transformers' names → OpenCLIP's, the text tower at the root."""
    layers = [count_blocks(rf"{tower}_model\.encoder\.layers\.(\d+)\.", tensors) for tower in ("vision", "text")]
    return convert_to_ours(_steps(*layers), tensors)


def to_huggingface(
    model: nn.Module, spec: ModelSpec, vision: ViTConfig, text: CLIPTextConfig
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    _refuse_what_clip_has_not(spec, vision, text)
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
            "vocab_size": text.vocab_size,
            "hidden_size": text.width,
            "intermediate_size": int(text.width * text.mlp_ratio),
            "projection_dim": spec.embed_dim,
            "num_hidden_layers": text.layers,
            "num_attention_heads": text.heads,
            "max_position_embeddings": text.context_length,
            "hidden_act": act,
            "layer_norm_eps": text.norm_eps,
            "pad_token_id": text.pad_id,
            "bos_token_id": eos - 1 if bpe and eos is not None else 0,
            "eos_token_id": eos,
        },
        "vision_config": {
            "hidden_size": vision.width,
            "intermediate_size": int(vision.width * vision.mlp_ratio),
            "projection_dim": spec.embed_dim,
            "num_hidden_layers": vision.layers,
            "num_attention_heads": vision.heads,
            "image_size": as_pair(vision.image_size)[0],
            "patch_size": vision.patch_size,
            "hidden_act": act,
            "layer_norm_eps": vision.norm_eps,
        },
    }
    at_root = {name.removeprefix("text."): tensor for name, tensor in model.state_dict().items()}
    return config, convert_to_theirs(_steps(vision.layers, text.layers), at_root)


def _refuse_what_clip_has_not(spec: ModelSpec, vision: ViTConfig, text: CLIPTextConfig) -> None:
    size = as_pair(vision.image_size)
    plain_vision = ViTConfig(
        image_size=vision.image_size, patch_size=vision.patch_size, width=vision.width, layers=vision.layers,
        head_width=vision.head_width, mlp_ratio=vision.mlp_ratio, norm_eps=vision.norm_eps,
        gelu_tanh=vision.gelu_tanh, patch_dropout=vision.patch_dropout,
    )  # fmt: skip
    plain_text = CLIPTextConfig(
        context_length=text.context_length, vocab_size=text.vocab_size, width=text.width, heads=text.heads,
        layers=text.layers, mlp_ratio=text.mlp_ratio, norm_eps=text.norm_eps, gelu_tanh=text.gelu_tanh,
        pad_id=text.pad_id, eos_id=text.eos_id, pool_type=text.pool_type,
    )  # fmt: skip
    odd = {
        "a logit_bias": spec.init_logit_bias is not None,
        f"pictures of {size[0]}x{size[1]}": size[0] != size[1],
        "options of its image tower": vision != plain_vision,
        "options of its text tower": text != plain_text or text.pool_type not in ("argmax", "eos"),
        "another activation in each tower": vision.gelu_tanh != text.gelu_tanh and not spec.quick_gelu,
    }
    if found := [name for name, is_so in odd.items() if is_so]:
        raise ClipModelsError(
            f"{spec.name!r} has {found[0]}, which transformers' CLIPModel has not; export it otherwise"
        )


def _steps(vision_layers: int, text_layers: int) -> list[Step]:
    return [
        move("vision_model.embeddings.class_embedding", "visual.class_embedding"),
        move("vision_model.embeddings.patch_embedding.weight", "visual.conv1.weight"),
        move("vision_model.embeddings.position_embedding.weight", "visual.positional_embedding"),
        *move_layer("vision_model.pre_layrnorm", "visual.ln_pre"),  # spelt so there
        *block_steps("vision_model.encoder.layers", "visual.transformer.resblocks", vision_layers),
        *move_layer("vision_model.post_layernorm", "visual.ln_post"),
        move("visual_projection.weight", "visual.proj", transpose, transpose),
        move("text_model.embeddings.token_embedding.weight", "token_embedding.weight"),
        move("text_model.embeddings.position_embedding.weight", "positional_embedding"),
        *block_steps("text_model.encoder.layers", "transformer.resblocks", text_layers),
        *move_layer("text_model.final_layer_norm", "ln_final"),
        move("text_projection.weight", "text_projection", transpose, transpose),
    ]


def block_steps(theirs: str, ours: str, layers: int) -> list[Step]:
    """Blocks of transformers' CLIP and SigLIP ↔ OpenCLIP's residual attention blocks."""
    layer_names = {
        "layer_norm1": "ln_1", "layer_norm2": "ln_2", "self_attn.out_proj": "attn.out_proj",
        "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
    }  # fmt: skip
    steps = []
    for i in range(layers):
        for old, new in layer_names.items():
            steps += move_layer(f"{theirs}.{i}.{old}", f"{ours}.{i}.{new}")
        for kind in ("weight", "bias"):
            parts = tuple(f"{theirs}.{i}.self_attn.{part}_proj.{kind}" for part in "qkv")
            steps.append(Step(parts, (f"{ours}.{i}.attn.in_proj_{kind}",)))
    return steps
