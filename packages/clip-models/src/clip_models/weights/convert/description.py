"""The description of weights, in them or in a file beside them, against the spec that was asked for.

A description that a program wrote is believed: an architecture or an activation that contradicts it is an error, and
its preprocessing and tokenizer replace the defaults of the architecture that was asked for.
"""

import dataclasses
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clip_core.config import to_dict
from clip_models.errors import ClipModelsError
from clip_models.specs import ModelSpec, PreprocessConfig, TokenizerConfig, as_pair, get_model_spec, list_models
from clip_models.specs.openclip import from_open_clip_config
from clip_models.specs.overrides import FORCEABLE
from clip_models.weights.convert.formats import Format
from clip_models.weights.convert.huggingface import spec_from_huggingface
from clip_models.weights.registry import identify

OPEN_CLIP_CONFIG = "open_clip_config.json"
HF_CONFIG = "config.json"
HF_PROCESSOR = "preprocessor_config.json"

_OF_TRAINING = {"patch_dropout", "drop", "drop_path", "output_tokens", "ls_init_value", "kind"}
_OF_NO_FLAG = {"gelu_tanh", "act_layer"}
"""Adopted, not compared: OpenCLIP has no flag for it, and its SigLIP specs differ from transformers' in it."""
_HF_TEXT_KEYS = ("model_type", "hidden_act", "hidden_activation", "num_attention_heads", "layer_norm_eps")


@dataclass(frozen=True)
class Description:
    """What is known about a set of weights; None is unknown."""

    origin: str
    """Its source, for messages."""
    spec: ModelSpec | None = None
    """The whole spec."""
    ours: bool = False
    """Whether save_model wrote it."""
    quick_gelu: bool | None = None
    preprocess: PreprocessConfig | None = None
    tokenizer: TokenizerConfig | None = None


def describe_spec(origin: str, spec: ModelSpec, *, ours: bool = False, tokenizer: bool = True) -> Description:
    return Description(origin, spec, ours, spec.quick_gelu, spec.preprocess, spec.tokenizer if tokenizer else None)


def describe_beside(path: Path, known: Format | None) -> Description | None:
    """Returns the description in the folder of the weights file `path`, or else in the registry of tags.

    `known` is the layout of the weights, None if it is unknown: transformers' config.json describes weights in its own
    layout, and open_clip_config.json those in any other.
    """
    hugging = known is not None and known.name.startswith("Hugging Face")
    names = [HF_CONFIG] if hugging else [OPEN_CLIP_CONFIG] if known else [OPEN_CLIP_CONFIG, HF_CONFIG]
    for name in names:
        config = path.with_name(name)
        if config.is_file() and (spec := read_config(config)):
            return describe_spec(str(config), spec, tokenizer=name == OPEN_CLIP_CONFIG)
    row = identify(path)
    if row is None:
        return None
    size = get_model_spec(row.model).preprocess.size
    origin = f"the registry's entry {row.model}:{row.tag}"
    return Description(origin, quick_gelu=row.quick_gelu, preprocess=row.preprocess(size))


def read_config(path: Path) -> ModelSpec | None:
    """Returns the spec in an open_clip_config.json, or in transformers' config.json and the processor's file beside it.

    It is named after the folder. Returns None for a config.json of another kind of model.
    """
    config, folder = _read_json(path), path.absolute().parent
    name = folder.name or "model"
    if folder.parent.name == "snapshots":  # in the hub's cache
        name = folder.parent.parent.name.rpartition("--")[2]
    if path.name == OPEN_CLIP_CONFIG:
        spec = from_open_clip_config(config, name)
        return dataclasses.replace(spec, tokenizer=_tokenizer_beside(spec.tokenizer, folder))
    if "vision_config" not in config or "text_config" not in config:
        return None
    processor = path.with_name(HF_PROCESSOR)
    spec = spec_from_huggingface(config, _read_json(processor) if processor.is_file() else None, name)
    if spec.tokenizer.kind != "hf":
        return spec
    return dataclasses.replace(spec, tokenizer=dataclasses.replace(spec.tokenizer, name=str(folder)))


def _tokenizer_beside(config: TokenizerConfig, folder: Path) -> TokenizerConfig:
    """Returns the config with the tokenizer's files in the folder of the weights, if they are there."""
    if config.kind == "hf" and (folder / "tokenizer_config.json").is_file():
        return dataclasses.replace(config, name=str(folder))
    beside = folder / Path(config.name).name
    if config.kind == "tiktoken" and beside.is_file():
        return dataclasses.replace(config, name=str(beside))
    return config


def reconcile(asked: ModelSpec, known: Description | None, sure_of: Collection[str], where: str) -> ModelSpec:
    """Returns the spec to build: what was asked for, completed by what is known about the weights.

    `sure_of` names what the caller insists on, keys of FORCEABLE. Raises ClipModelsError for a contradiction, with the
    source of the description and the flag to use.
    """
    if odd := [name for name in sure_of if name not in FORCEABLE]:
        raise ClipModelsError(f"{odd[0]!r} cannot be insisted on; choose from {', '.join(FORCEABLE)}")
    if known is None:
        return asked
    if known.quick_gelu is not None and known.quick_gelu != asked.quick_gelu and "quick_gelu" not in sure_of:
        raise ClipModelsError(f"{where}: {another_activation(asked, known.origin, known.quick_gelu)}")
    spec = asked
    if known.spec is not None:
        if difference := network_difference(known.spec, asked, sure_of):
            raise ClipModelsError(
                f"{where} holds {known.spec.name!r}, not {asked.name!r}: {difference}; ask for that model"
                + ("" if known.ours else f" (as {known.origin} says)")
            )
        spec = _insist(known.spec, asked, sure_of) if known.ours else _adopt_activation(asked, known.spec)
    if known.preprocess is not None and "preprocess" not in sure_of:
        spec = _take_preprocess(spec, asked, known.preprocess, f"{where}: {known.origin}")
    if known.tokenizer is not None and "tokenizer" not in sure_of:
        wanted = asked.tokenizer
        if Path(known.tokenizer.name).is_absolute():  # its own files have no other name than their path
            wanted = dataclasses.replace(wanted, name=known.tokenizer.name)
        if known.tokenizer != wanted and not _is_default(asked, "tokenizer"):
            raise ClipModelsError(
                f"{where}: {known.origin} names the tokenizer {to_dict(known.tokenizer)}, but"
                f" {to_dict(asked.tokenizer)} was asked for; set the tokenizer in the spec"
            )
        spec = dataclasses.replace(spec, tokenizer=known.tokenizer)
    return spec


def network_difference(one: ModelSpec, other: ModelSpec, sure_of: Collection[str] = ()) -> str:
    """Returns the differences of two networks, except of `quick_gelu`; "" if they compute the same."""
    # Input sizes with as many patches are equal: a border less wide than a patch is ignored.
    same_grid = _grid(one.vision) is not None and _grid(one.vision) == _grid(other.vision)
    found = [f"embed_dim {one.embed_dim} against {other.embed_dim}"] if one.embed_dim != other.embed_dim else []
    hint = ""
    for part in ("vision", "text", "decoder"):
        mine, theirs = (_network_facts(getattr(spec, part)) for spec in (one, other))
        if type(getattr(one, part)) is not type(getattr(other, part)):
            configs = (getattr(one, part), getattr(other, part))
            kinds = ("none" if config is None else getattr(config, "kind", "one") for config in configs)
            found.append("{} {} against {}".format(part, *kinds))
            continue
        for key in mine:
            if mine[key] != theirs.get(key) and key not in sure_of and not (key == "image_size" and same_grid):
                found.append(f"{part}.{key} {mine[key]} against {theirs.get(key)}")
                hint = f" (force_{key}={mine[key]})" if key in ("image_size", "context_length") else ""
    return ", ".join(found[:5]) + (", …" if len(found) > 5 else hint if len(found) == 1 else "")


def _grid(vision: Any) -> tuple[int, ...] | None:
    patch = getattr(vision, "patch_size", None)
    if patch is None and (found := re.search(r"siglip", getattr(vision, "model_name", ""))):
        found = re.search(r"_patch(\d+)_", vision.model_name)
        patch = vision.model_kwargs.get("patch_size", int(found[1]) if found else None)
    return tuple(side // patch for side in as_pair(vision.image_size)) if patch else None


def _network_facts(config: Any) -> dict[str, Any]:
    if config is None:
        return {}
    facts = {key: value for key, value in to_dict(config).items() if key not in _OF_TRAINING | _OF_NO_FLAG}
    if "mlp_ratio" in facts:  # only its product with the width counts
        facts["mlp_ratio"] = int(facts["width"] * facts["mlp_ratio"]) / facts["width"]
    if "config" in facts:
        facts["config"] = {key: facts["config"].get(key) for key in _HF_TEXT_KEYS}
        facts.pop("model_name")
    if "model_kwargs" in facts:
        facts["model_kwargs"] = {k: v for k, v in facts["model_kwargs"].items() if k not in _OF_NO_FLAG}
        # timm has some trunks under several names that differ in the input size alone
        facts["model_name"] = (
            facts["model_name"].rsplit("_", 1)[0] if "siglip" in config.model_name else config.model_name
        )
    if isinstance(facts.get("image_size"), int):
        facts["image_size"] = [facts["image_size"]] * 2
    if facts.get("pool_type") == "eos" and facts.get("eos_id") == facts["vocab_size"] - 1:
        facts["pool_type"] = "argmax"  # the highest id is the end token's
    if "eos_id" in facts and facts["pool_type"] != "eos":
        del facts["eos_id"]
    return facts


def another_activation(asked: ModelSpec, origin: str, quick_gelu: bool) -> str:
    """Returns the message for weights whose activation is not that of the model."""
    theirs, ours = ("QuickGELU", "GELU") if quick_gelu else ("GELU", "QuickGELU")
    sibling = asked.name + "-quickgelu" if quick_gelu else asked.name.removesuffix("-quickgelu")
    otherwise = "its quickgelu variant" if quick_gelu else "its variant without quickgelu"
    return (
        f"these weights were trained with {theirs}, as {origin} says, and {asked.name!r} has {ours} (quick_gelu"
        f" {quick_gelu} against {not quick_gelu}); ask for {sibling if sibling in list_models() else otherwise}"
        + (" or force_quick_gelu=True" if quick_gelu else "")
    )


def _insist(known: ModelSpec, asked: ModelSpec, sure_of: Collection[str]) -> ModelSpec:
    """Returns `known` with what the caller insists on."""
    changes: dict[str, Any] = {name: getattr(asked, name) for name in sure_of if FORCEABLE[name] is None}
    for part in ("vision", "text"):
        mine, theirs = getattr(known, part), getattr(asked, part)
        inner = {name: getattr(theirs, name) for name in sure_of if FORCEABLE[name] == part and hasattr(theirs, name)}
        if inner:
            changes[part] = dataclasses.replace(mine, **inner)
    if "image_size" in sure_of:
        preprocess = changes.get("preprocess", known.preprocess)
        changes["preprocess"] = dataclasses.replace(preprocess, size=as_pair(asked.vision.image_size))
    return dataclasses.replace(known, **changes)


def _adopt_activation(asked: ModelSpec, known: ModelSpec) -> ModelSpec:
    """Returns `asked` with the kind of GELU of the weights, in either tower."""
    changes: dict[str, Any] = {}
    for part in ("vision", "text"):
        mine, theirs = getattr(asked, part), getattr(known, part)
        for name in ("gelu_tanh", "model_kwargs"):
            if hasattr(mine, name) and getattr(mine, name) != getattr(theirs, name):
                changes[part] = dataclasses.replace(mine, **{name: getattr(theirs, name)})
    return dataclasses.replace(asked, **changes)


def _take_preprocess(spec: ModelSpec, asked: ModelSpec, known: PreprocessConfig, origin: str) -> ModelSpec:
    """Returns `spec` with the known preprocessing at the size of the tower. Raises if another one was asked for."""
    taken = dataclasses.replace(known, size=as_pair(spec.vision.image_size))
    wanted = dataclasses.replace(asked.preprocess, size=taken.size)
    if not _same_preprocess(taken, wanted) and not _is_default(asked, "preprocess"):
        raise ClipModelsError(
            f"{origin} says that these weights were trained on images with {_described(taken)}, but"
            f" {_described(wanted)} was asked for; leave it out, or insist with force_preprocess_cfg"
        )
    return dataclasses.replace(spec, preprocess=wanted if _same_preprocess(taken, wanted) else taken)


def _same_preprocess(one: PreprocessConfig, other: PreprocessConfig) -> bool:
    """Equal up to rounding: some files give mean and std with four digits."""
    close = all(abs(a - b) < 1e-3 for a, b in zip(one.mean + one.std, other.mean + other.std, strict=True))
    return close and (one.interpolation, one.resize_mode) == (other.interpolation, other.resize_mode)


def _described(config: PreprocessConfig) -> str:
    return (
        f"mean {[round(v, 4) for v in config.mean]}, std {[round(v, 4) for v in config.std]},"
        f" {config.interpolation}, {config.resize_mode}"
    )


def _is_default(asked: ModelSpec, part: str) -> bool:
    """Whether a part of the spec is the default of the named architecture."""
    usual = get_model_spec(asked.name) if asked.name in list_models() else None
    if part == "preprocess":
        default = usual.preprocess if usual else PreprocessConfig()
        return _same_preprocess(asked.preprocess, default)
    return asked.tokenizer == (usual.tokenizer if usual else TokenizerConfig())


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ClipModelsError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(content, dict):
        raise ClipModelsError(f"{path} holds no JSON object")
    return content
