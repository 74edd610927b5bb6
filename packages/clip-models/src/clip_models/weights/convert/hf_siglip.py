"""transformers' SiglipModel, in which SigLIP 2's fixed-resolution checkpoints come too: timm's ViT here."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from clip_models.errors import ClipModelsError
from clip_models.specs import CLIPTextConfig, ModelSpec, PreprocessConfig, TimmConfig, TokenizerConfig, as_pair
from clip_models.tables import read_table
from clip_models.weights.convert.hf_configs import from_theirs, mlp_ratio, to_theirs, tower_config
from clip_models.weights.convert.steps import convert_to_theirs

SIGLIP_MEAN = SIGLIP_STD = (0.5, 0.5, 0.5)

_TIMM_ACTS = {"gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "quick_gelu": "quick_gelu"}


def spec_from_config(config: Mapping[str, Any], name: str) -> ModelSpec:
    text = tower_config(config, "text_config", "siglip")
    vision = tower_config(config, "vision_config", "siglip")
    width = text.get("projection_size") or text["hidden_size"]
    if not vision["vision_use_head"] or width != vision["hidden_size"]:
        raise ClipModelsError(
            f"config.json describes features of {vision['hidden_size']} channels from images, with"
            f" vision_use_head {vision['vision_use_head']}, and of {width} from text; both must have the same width"
        )
    if text["hidden_act"] not in ("gelu", "gelu_pytorch_tanh") or vision["hidden_act"] not in _TIMM_ACTS:
        raise ClipModelsError(f"config.json has hidden_act {text['hidden_act']!r}, which SigLIP does not have")
    return ModelSpec(
        name=name,
        embed_dim=width,
        custom_text=True,
        init_logit_bias=-10.0,
        vision=_trunk(vision),
        text=CLIPTextConfig(
            **from_theirs("text", text),
            no_causal_mask=True,
            pool_type="last",
            proj_bias=True,
            gelu_tanh=text["hidden_act"] == "gelu_pytorch_tanh",
        ),
        preprocess=PreprocessConfig(
            size=as_pair(vision["image_size"]), mean=SIGLIP_MEAN, std=SIGLIP_STD, resize_mode="squash"
        ),
        tokenizer=TokenizerConfig(kind="hf", name=name, clean="canonicalize"),
    )


def _trunk(vision: Mapping[str, Any]) -> TimmConfig:
    """Returns timm's trunk of these sizes, by its own name if it has one."""
    width, hidden = vision["hidden_size"], vision["intermediate_size"]
    shape = (width, vision["num_hidden_layers"], vision["num_attention_heads"], hidden, vision["patch_size"])
    kwargs: dict[str, Any] = {}
    trunks = {tuple(row["shape"]): str(row["name"]) for row in read_table("huggingface")["siglip"]["trunks"]}
    if shape not in trunks:
        kwargs = {
            "embed_dim": width, "depth": shape[1], "num_heads": shape[2], "mlp_ratio": mlp_ratio(hidden, width),
            "patch_size": shape[4],
        }  # fmt: skip
    name = trunks.get(shape, "vit_base_patch16_siglip_224")
    own_act = "gelu_tanh" if "giantopt" in name else "gelu"
    if _TIMM_ACTS[vision["hidden_act"]] != own_act:
        kwargs["act_layer"] = _TIMM_ACTS[vision["hidden_act"]]
    if vision["layer_norm_eps"] != 1e-6:
        raise ClipModelsError(f"config.json has layer_norm_eps {vision['layer_norm_eps']}; timm's trunks have 1e-6")
    return TimmConfig(model_name=name, image_size=vision["image_size"], pool="map", proj="none", model_kwargs=kwargs)


def to_huggingface(
    model: nn.Module, spec: ModelSpec, vision: TimmConfig, text: CLIPTextConfig
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    tensors = model.state_dict()
    _check_exportable(spec, vision, text, tensors)
    trunk: Any = model.visual.trunk  # type: ignore[union-attr]
    block, height = trunk.blocks[0], as_pair(vision.image_size)[0]
    acts = {"GELU": "gelu", "GELUTanh": "gelu_pytorch_tanh", "QuickGELU": "quick_gelu"}
    act = type(block.mlp.act).__name__
    if act not in acts:
        raise ClipModelsError(f"{spec.name!r} has the image activation {act}, which SiglipModel does not have")
    config = {
        "model_type": "siglip",
        "architectures": ["SiglipModel"],
        "text_config": {
            **to_theirs("text", text),
            "hidden_act": "gelu_pytorch_tanh" if text.gelu_tanh else "gelu",
            "projection_size": spec.embed_dim,
            "pad_token_id": text.pad_id,
            "bos_token_id": None,
            "eos_token_id": text.eos_id,
        },
        "vision_config": {
            "hidden_size": trunk.embed_dim,
            "intermediate_size": block.mlp.fc1.out_features,
            "num_hidden_layers": len(trunk.blocks),
            "num_attention_heads": block.attn.num_heads,
            "image_size": height,
            "patch_size": trunk.patch_embed.patch_size[0],
            "hidden_act": acts[act],
            "layer_norm_eps": block.norm1.eps,
        },
    }
    return config, convert_to_theirs("hf_siglip", tensors)


def _check_exportable(spec: ModelSpec, vision: TimmConfig, text: CLIPTextConfig, tensors: Mapping[str, Tensor]) -> None:
    size = as_pair(vision.image_size)
    plain = (text.no_causal_mask, text.pool_type, text.proj_bias, text.proj_type, text.embed_cls, text.ls_init_value)
    odd = {
        "no logit_bias": spec.init_logit_bias is None,
        "another image tower than SigLIP's": "siglip" not in vision.model_name
        or "visual.trunk.attn_pool.latent" not in tensors,
        f"images of {size[0]}x{size[1]}": size[0] != size[1],
        "another text tower than SigLIP's": plain != (True, "last", True, "linear", False, None)
        or text.final_ln_after_pool,
        "QuickGELU": spec.quick_gelu,
    }
    if found := [name for name, is_so in odd.items() if is_so]:
        raise ClipModelsError(f"{spec.name!r} has {found[0]}; transformers has no counterpart")
