"""The table of architectures says what OpenCLIP's own files and tags say."""

import dataclasses
import json
from pathlib import Path

import pytest

from clip_models.specs import HFTextConfig, from_open_clip_config, get_model_spec, to_open_clip_config

open_clip = pytest.importorskip("open_clip")
pytestmark = pytest.mark.parity

FOLDER = Path(open_clip.__file__).parent / "model_configs"
# Slips of OpenCLIP's files that the table corrects: what the file says, and what the weights are.
CORRECTED = {"ViTamin-XL-384": ("image_size", 256, 384)}
# Keys of the files that change nothing in OpenCLIP.
WITHOUT_EFFECT = ("dim_head", "n_queries", "attn_pooler_heads", "mlp_ratio")


def published(name: str) -> dict:
    data = json.loads((FOLDER / f"{name}.json").read_text())
    if name in CORRECTED:
        key, theirs, ours = CORRECTED[name]
        assert data["vision_cfg"][key] == theirs, "corrected upstream: drop it from CORRECTED"
        data["vision_cfg"][key] = ours
    return data


def told(model: dict) -> dict:
    """A model_cfg without keys that are at their defaults, implied by others, or without an effect."""
    vision = dataclasses.asdict(open_clip.model.CLIPVisionCfg())
    text = dataclasses.asdict(open_clip.model.CLIPTextCfg())
    implied = ("custom_text",) if "hf_model_name" in model["text_cfg"] else ()
    left = {key: item for key, item in model.items() if key not in implied}
    for part, defaults in (("vision_cfg", vision), ("text_cfg", text), ("multimodal_cfg", text)):
        if part in left:
            left[part] = {k: v for k, v in left[part].items() if k not in defaults or v != defaults[k]}
    if "timm_proj" not in model["vision_cfg"]:
        left["vision_cfg"].pop("timm_proj", None)
    for key in WITHOUT_EFFECT:
        left.get("multimodal_cfg", {}).pop(key, None)
    if "hf_model_name" in model["text_cfg"]:
        left["text_cfg"].pop("width", None)
    return left


@pytest.mark.parametrize("name", open_clip.list_models())
def test_the_table_says_what_the_file_says(name):
    assert from_open_clip_config(published(name), name) == get_model_spec(name)


@pytest.mark.parametrize("name", open_clip.list_models())
def test_the_export_is_the_file(name):
    file, spec = told(published(name)), get_model_spec(name)
    written = to_open_clip_config(spec)["model_cfg"]
    ours = told(written)
    # ResNets have a patch size of null.
    file["vision_cfg"] = {k: v for k, v in file["vision_cfg"].items() if v is not None or k == "timm_proj"}
    assert ours == file
    open_clip.model.CLIPVisionCfg(**written["vision_cfg"])  # takes every key
    open_clip.model.CLIPTextCfg(**written["text_cfg"])


def test_preprocessing_is_that_of_the_tags_where_they_agree():
    keys = ("mean", "std", "interpolation", "resize_mode")
    checked = 0
    for name in open_clip.list_models():
        tags = [open_clip.get_pretrained_cfg(name, tag) for tag in open_clip.list_pretrained_tags_by_model(name)]
        theirs = {tuple(tag[key] for key in keys) for tag in tags}
        if len(theirs) == 1:
            ours = get_model_spec(name).preprocess
            assert (name, *theirs.pop()) == (name, *(getattr(ours, key) for key in keys))
            checked += 1
    assert checked > 80


def test_tokenizers_are_those_of_the_files():
    for name in open_clip.list_models():
        text, tokenizer = open_clip.get_model_config(name)["text_cfg"], get_model_spec(name).tokenizer
        assert tokenizer.name == text.get("hf_tokenizer_name", "")
        assert tokenizer.clean == text.get("tokenizer_kwargs", {}).get("clean", "")
        assert tokenizer.strip_sep_token == text.get("tokenizer_kwargs", {}).get("strip_sep_token", False)
        assert isinstance(get_model_spec(name).text, HFTextConfig) == ("hf_model_name" in text)
