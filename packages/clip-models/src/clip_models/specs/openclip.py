"""OpenCLIP's description of a model, open_clip_config.json, to a spec and back."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from clip_core.config import to_dict
from clip_core.suggest import did_you_mean
from clip_models.errors import ClipModelsError
from clip_models.specs.families import built_in, hf_text_configs, resolve
from clip_models.specs.model import ModelSpec
from clip_models.specs.modern_text import ModernTextConfig
from clip_models.specs.text import CLIPTextConfig, DecoderConfig, HFTextConfig
from clip_models.specs.tokenizer import TokenizerConfig
from clip_models.specs.tower import TowerConfig
from clip_models.specs.vision import ResNetConfig, TimmConfig, ViTConfig
from clip_models.tables import read_table

_Plain = dict[str, Any]


def _defaults(config: type, table: str, *but: str) -> _Plain:
    """Returns what OpenCLIP assumes for absent keys. A key at its default has no meaning in any tower."""
    tables = read_table("openclip_defaults")
    given: _Plain = tables["block"] | tables[table]
    return {f.name: f.default for f in fields(config) if f.name not in but} | given


_VISION_DEFAULTS = _defaults(ViTConfig, "vision", "norm_eps", "gelu_tanh")
_TEXT_DEFAULTS = _defaults(CLIPTextConfig, "text", "norm_eps", "gelu_tanh", "eos_id")
# Always written, so that a config can be read without the code.
_SHOWN = ("image_size", "patch_size", "layers", "width", "heads", "context_length", "vocab_size", "norm_eps")
_HF_POOLERS = {"roberta": "mean_pooler", "xlm-roberta": "mean_pooler", "mt5": "mean_pooler"}  # the others: cls_pooler
_TIMM_KEYS = ("model_name", "pool", "proj", "proj_bias", "drop", "drop_path", "model_kwargs")


def from_open_clip_config(data: Mapping[str, Any], name: str) -> ModelSpec:
    """Returns the spec in the contents of an open_clip_config.json, or in its `model_cfg` alone.

    Without `preprocess_cfg` the preprocessing is that of the built-in architecture `name`, if there is one, else
    OpenAI's. A Hugging Face text tower takes its configuration from the table by `hf_model_name`; another one needs it
    under `hf_model_config`, beside `model_cfg` or in `text_cfg`. Raises ClipModelsError for unknown keys and for
    options that have no equivalent here.
    """
    whole = _mapping(data, "open_clip_config.json")
    root = _Keys(whole.get("model_cfg", whole), "model_cfg")
    for key in ("audio_cfg", "genlip_cfg", "genlap_cfg"):
        if root.take(key) is not None:
            raise ClipModelsError(f"model_cfg.{key} is not an image-text dual encoder; other models are not supported")
    for key in ("vision_cfg", "text_cfg"):
        if key not in root.left:
            raise ClipModelsError(f"model_cfg of {name!r} lacks the key {key!r}")
    if root.take("nonscalar_logit_scale"):
        raise ClipModelsError("model_cfg.nonscalar_logit_scale is not supported: logit_scale is a scalar here")
    decoder = root.take("multimodal_cfg")
    text_keys = _Keys(root.take("text_cfg"), "text_cfg", _TEXT_DEFAULTS)
    vision_keys = _Keys(root.take("vision_cfg"), "vision_cfg", _VISION_DEFAULTS)
    spec: _Plain = {"name": name, "vision": _read_vision(vision_keys)}
    spec["tokenizer"] = _read_tokenizer(text_keys, name)
    if decoder is not None:
        spec["decoder"] = _read_decoder(_Keys(decoder, "multimodal_cfg"), text_keys)
    spec["text"] = _read_text(text_keys, whole.get("hf_model_config"))
    custom_text = root.take("custom_text")
    if custom_text and spec["text"]["kind"] == "clip" and decoder is None:
        spec["custom_text"] = True
    root.move(("embed_dim", "quick_gelu", "init_logit_scale", "init_logit_bias"), spec)
    root.finish()
    if "preprocess_cfg" in whole:
        preprocess = _mapping(whole["preprocess_cfg"], "preprocess_cfg")
        # As in OpenCLIP the size is always the tower's.
        spec["preprocess"] = {key: item for key, item in preprocess.items() if key != "size" and item is not None}
    elif name in built_in():
        spec["preprocess"] = resolve(name, built_in()).get("preprocess", {})
    return ModelSpec.from_dict(spec)


def to_open_clip_config(spec: ModelSpec) -> _Plain:
    """Returns the contents of an open_clip_config.json, plain JSON types; `from_open_clip_config` is its inverse.

    The configuration of a Hugging Face text tower is beside `model_cfg`, where OpenCLIP ignores it. Raises
    ClipModelsError for a spec that OpenCLIP's config cannot express.
    """
    text = _write_tower(spec.text) | _write_tokenizer(spec.tokenizer)
    model: _Plain = {"embed_dim": spec.embed_dim}
    if spec.quick_gelu:
        model["quick_gelu"] = True
    if not spec.text_at_root:
        model["custom_text"] = True
    for key in ("init_logit_scale", "init_logit_bias"):
        if getattr(spec, key) is not None:
            model[key] = getattr(spec, key)
    model |= {"vision_cfg": _write_tower(spec.vision), "text_cfg": text}
    if spec.decoder is not None:
        if spec.decoder.mlp_ratio != DecoderConfig.mlp_ratio:
            raise ClipModelsError(f"decoder.mlp_ratio {spec.decoder.mlp_ratio} is always 4 in OpenCLIP")
        model["multimodal_cfg"] = {key: item for key, item in to_dict(spec.decoder).items() if key != "mlp_ratio"}
        text["vocab_size"] = spec.decoder.vocab_size
    preprocess = {key: item for key, item in to_dict(spec.preprocess).items() if key != "size"}
    config: _Plain = {"model_cfg": model, "preprocess_cfg": preprocess}
    if isinstance(spec.text, HFTextConfig):
        config["hf_model_config"] = to_dict(spec.text.config)
    return config


class _Keys:
    """The keys of one table, removed as they are read. Keys at OpenCLIP's defaults and null keys are left out."""

    def __init__(self, data: Any, where: str, defaults: Mapping[str, Any] | None = None) -> None:
        self.where = where
        self.defaults = defaults or {}
        self.known = set(self.defaults)
        items = _mapping(data, where).items()
        self.nulls = {key for key, item in items if item is None}
        self.left = {
            key: item
            for key, item in items
            if item is not None and not (key in self.defaults and item == self.defaults[key])
        }

    def take(self, key: str, default: Any = None) -> Any:
        self.known.add(key)
        return self.left.pop(key, default)

    def move(self, names: tuple[str, ...], into: _Plain, prefix: str = "") -> None:
        for name in names:
            value = self.take(prefix + name)
            if value is not None:
                into[name] = value

    def finish(self, tower: str = "") -> None:
        """Raises ClipModelsError if a key is left."""
        for key, item in self.left.items():
            if key in self.known:
                raise ClipModelsError(f"{self.where}.{key} {item!r} is not supported{tower}")
            hint = did_you_mean(key, self.known)
            raise ClipModelsError(f"unknown key {key!r} in {self.where}{hint and f'; {hint}'}")


def _mapping(data: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(data, Mapping):
        raise ClipModelsError(f"{where} must be a table, not {data!r}")
    return data


def _names(config: type, *but: str) -> tuple[str, ...]:
    return tuple(f.name for f in fields(config) if f.name not in but)


def _read_vision(keys: _Keys) -> _Plain:
    keys.take("timm_model_pretrained")
    name = keys.take("timm_model_name")
    if name is not None:
        if str(name).startswith("naflexvit"):
            raise ClipModelsError(f"vision_cfg.timm_model_name {name!r}: variable resolution is not supported")
        vision: _Plain = {"kind": "timm", "model_name": name}
        keys.move(_TIMM_KEYS[1:], vision, prefix="timm_")
        keys.move(("image_size", "patch_dropout"), vision)
        if "timm_proj" in keys.nulls:
            vision["proj"] = ""
        keys.finish(" with timm_model_name")
        return vision
    if isinstance(keys.left.get("layers"), list | tuple):
        vision = {"kind": "resnet"}
        keys.move(_names(ResNetConfig), vision)
        keys.finish(" with a ResNet, whose layers are a list")
        return vision
    vision = {"kind": "vit"}
    _read_layer_arguments(keys, vision)
    keys.move(_names(ViTConfig, "norm_eps", "gelu_tanh"), vision)
    if not isinstance(vision.get("attentional_pool", False), bool):
        raise ClipModelsError(f"vision_cfg.attentional_pool {vision['attentional_pool']!r} must be true or false")
    keys.finish()
    return vision


def _read_layer_arguments(keys: _Keys, into: _Plain) -> None:
    norm = dict(_mapping(keys.take("norm_kwargs", {}), f"{keys.where}.norm_kwargs"))
    activation = dict(_mapping(keys.take("act_kwargs", {}), f"{keys.where}.act_kwargs"))
    if "eps" in norm:
        into["norm_eps"] = norm.pop("eps")
    if activation.pop("approximate", "none") != "none":
        into["gelu_tanh"] = True
    for key, left in (("norm_kwargs", norm), ("act_kwargs", activation)):
        if left:
            raise ClipModelsError(f"{keys.where}.{key} {left} is not supported")


def _read_text(keys: _Keys, beside: Any) -> _Plain:
    keys.take("hf_model_pretrained")
    arch = keys.take("text_arch", "clip")
    if arch not in ("clip", "modern"):
        raise ClipModelsError(f"text_cfg.text_arch {arch!r} is unknown; choose from clip, modern")
    if arch == "modern":
        # Absent keys take OpenCLIP's defaults, which are not all those of the dataclass.
        text: _Plain = {name: _TEXT_DEFAULTS[name] for name in _names(ModernTextConfig) if name in _TEXT_DEFAULTS}
        keys.take("variable_text")
        keys.move(_names(ModernTextConfig), text)
        if text["pool_type"] == "argmax":
            text["pool_type"] = "eos"
        keys.finish(" with text_arch modern")
        return {"kind": "modern", **{key: item for key, item in text.items() if item is not None}}
    if keys.left.get("hf_model_name") is not None:
        return _read_hf_text(keys, beside)
    text = {"kind": "clip"}
    _read_layer_arguments(keys, text)
    keys.move(_names(CLIPTextConfig, "norm_eps", "gelu_tanh"), text)
    keys.take("bos_id")  # the tokenizer's business
    keys.finish()
    return text


def _read_hf_text(keys: _Keys, beside: Any) -> _Plain:
    name = keys.take("hf_model_name")
    inside = _mapping(keys.take("hf_model_config", {}), "text_cfg.hf_model_config")
    known = beside if beside is not None else hf_text_configs().get(name, {})
    config = {**_mapping(known, "hf_model_config"), **inside}
    if "model_type" not in config:
        raise ClipModelsError(
            f"the configuration of text_cfg.hf_model_name {name!r} is not known here;"
            " give the contents of its config.json as text_cfg.hf_model_config"
        )
    text: _Plain = {"kind": "hf", "model_name": name, "config": config}
    keys.move(("context_length", "output_tokens"), text)
    keys.move(("pooler_type", "proj_type"), text, prefix="hf_")
    if "hf_pooler_type" in keys.nulls:
        text["pooler_type"] = _HF_POOLERS.get(config["model_type"], "cls_pooler")
    if "hf_proj_type" in keys.nulls:
        text["proj_type"] = "none"
    keys.take("variable_text")
    same = {
        "pad_id": "pad_token_id",
        "bos_id": "bos_token_id",
        "eos_id": "eos_token_id",
        "vocab_size": "vocab_size",
        "width": "d_model" if "d_model" in config else "hidden_size",
    }
    for key, theirs in same.items():
        value = keys.take(key)
        if value is not None and value != config.get(theirs):
            raise ClipModelsError(f"text_cfg.{key} {value!r} is not the {theirs} {config.get(theirs)!r} of {name!r}")
    keys.finish(" with hf_model_name")
    return text


def _read_decoder(keys: _Keys, text: _Keys) -> _Plain:
    # OpenCLIP's decoder has as many classes as text_cfg says, even above a Hugging Face tower.
    hf = "hf_model_name" in text.left
    classes = (text.take if hf else text.left.get)("vocab_size", _TEXT_DEFAULTS["vocab_size"])
    decoder: _Plain = {"context_length": _TEXT_DEFAULTS["context_length"], "vocab_size": classes}
    for key in ("dim_head", "n_queries", "attn_pooler_heads"):
        keys.take(key)  # of OpenCLIP's dataclass, without an effect
    for key, only in (("vocab_size", classes), ("mlp_ratio", DecoderConfig.mlp_ratio)):
        value = keys.take(key, only)
        if value != only:
            raise ClipModelsError(f"multimodal_cfg.{key} {value!r} is not supported: OpenCLIP builds {only} there")
    keys.move(("context_length", "width", "heads", "layers"), decoder)
    keys.finish()
    return decoder


def _read_tokenizer(keys: _Keys, model_name: str) -> _Plain:
    arguments = _Keys(keys.take("tokenizer_kwargs", {}), "text_cfg.tokenizer_kwargs", {"strip_sep_token": False})
    kind, encoding = keys.take("tokenizer_type", ""), keys.take("tiktoken_name", "cl100k_base")
    hf = keys.take("hf_tokenizer_name") or keys.left.get("hf_model_name")
    tokenizer: _Plain
    if kind == "tiktoken":
        tokenizer = {"kind": "tiktoken", "name": encoding}
    elif kind:
        raise ClipModelsError(f"text_cfg.tokenizer_type {kind!r} is not supported; it may be tiktoken")
    elif hf:
        tokenizer = {"kind": "hf", "name": hf}
        arguments.move(("strip_sep_token", "language"), tokenizer)
        if (mode := keys.take("tokenizer_mode")) is not None:
            tokenizer["mode"] = mode
    elif "siglip" in (lower := model_name.lower()):
        name = "gemma" if "siglip2" in lower else "mc4" if "i18n" in lower else "c4-en"
        tokenizer = {"kind": "sentencepiece", "name": name}
    else:
        tokenizer = {"kind": "clip-bpe"}
        if (reduction := arguments.take("reduction_mask")) is not None:
            tokenizer["reduction"] = reduction
    arguments.move(("clean",), tokenizer)
    arguments.finish(f" with a tokenizer of the kind {tokenizer['kind']}")
    return tokenizer


def _written(values: _Plain, defaults: Mapping[str, Any]) -> _Plain:
    """Returns `values` without the keys that OpenCLIP would assume anyway."""
    return {
        key: item
        for key, item in values.items()
        if item is not None and (key in _SHOWN or key not in defaults or item != defaults[key])
    }


def _write_tower(config: TowerConfig) -> _Plain:
    """Returns the `vision_cfg` or `text_cfg` of a tower."""
    values = {key: item for key, item in to_dict(config).items() if key != "kind"}
    match config:
        case ViTConfig() | CLIPTextConfig():
            eps, tanh = values.pop("norm_eps"), values.pop("gelu_tanh")
            written = _written(values, _VISION_DEFAULTS if isinstance(config, ViTConfig) else _TEXT_DEFAULTS)
            if eps != CLIPTextConfig.norm_eps:
                written["norm_kwargs"] = {"eps": eps}
            return written | ({"act_kwargs": {"approximate": "tanh"}} if tanh else {})
        case ResNetConfig():
            return _written(values, _VISION_DEFAULTS)
        case TimmConfig():
            written = {"image_size": values["image_size"], "patch_dropout": config.patch_dropout}
            written |= {f"timm_{key}": values[key] for key in _TIMM_KEYS if values[key] not in ({}, None)}
            return _written(written, _VISION_DEFAULTS) | ({"timm_proj": None} if config.proj == "" else {})
        case ModernTextConfig():
            return {"text_arch": "modern", "variable_text": True, **_written(values, _TEXT_DEFAULTS)}
        case HFTextConfig():
            return _write_hf_text(config)
    raise ClipModelsError(f"OpenCLIP's config cannot express a tower of the kind {config.kind!r}; use save_model")


def _write_hf_text(config: HFTextConfig) -> _Plain:
    text: _Plain = {
        "hf_model_name": config.model_name,
        "hf_pooler_type": config.pooler_type,
        "hf_proj_type": None if config.proj_type == "none" else config.proj_type,
    }
    text |= _written({"context_length": config.context_length, "output_tokens": config.output_tokens}, _TEXT_DEFAULTS)
    known = hf_text_configs().get(config.model_name)
    if known is not None and known != config.config:
        text["hf_model_config"] = {key: item for key, item in config.config.items() if known.get(key) != item}
    return text


def _write_tokenizer(config: TokenizerConfig) -> _Plain:
    if config.kind == "sentencepiece":
        raise ClipModelsError(f"OpenCLIP's config cannot express the sentencepiece tokenizer {config.name!r}; use hf")
    names = {"hf": {"hf_tokenizer_name": config.name}}
    names["tiktoken"] = {"tokenizer_type": "tiktoken", "tiktoken_name": config.name}
    arguments = {"clean": config.clean, "strip_sep_token": config.strip_sep_token, "language": config.language}
    arguments["reduction_mask"] = config.reduction
    options = {
        "tokenizer_mode": config.mode,
        "tokenizer_kwargs": {key: item for key, item in arguments.items() if item},
    }
    return {**names.get(config.kind, {}), **{key: item for key, item in options.items() if item}}
