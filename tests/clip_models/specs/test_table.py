import json
import subprocess
import sys
from dataclasses import replace

import pytest

import clip_models
from clip_models import ClipModelsError, CLIPTextConfig, ModelSpec, ViTConfig
from clip_models.specs import add_model_config, families, table, to_open_clip_config


@pytest.fixture(autouse=True)
def _forget_added(monkeypatch):
    monkeypatch.setattr(table, "_added", {})


def test_the_table_lists_the_named_architectures_only():
    names = clip_models.list_models()
    assert names == sorted(names)
    assert {"ViT-B-32", "RN50x64-quickgelu", "coca_base", "ViT-Ti-4-24"} <= set(names)
    assert not {"text-512", "siglip", "hf-roberta-base"} & set(names)


def test_inheritance_overrides_key_by_key():
    large = clip_models.get_model_spec("ViT-L-14-quickgelu")
    assert large == replace(
        ModelSpec(name="ViT-L-14-quickgelu", embed_dim=768),
        quick_gelu=True,
        vision=ViTConfig(image_size=224, patch_size=14, width=1024, layers=24),
        text=CLIPTextConfig(context_length=77, width=768, heads=12, layers=12),
    )
    assert large.vision.heads == 16


def test_a_table_of_another_kind_replaces_the_inherited_one():
    spec = clip_models.get_model_spec("xlm-roberta-large-ViT-H-14")
    assert spec.text.kind == "hf"
    assert spec.text.width == 1024
    assert spec.vision == clip_models.get_model_spec("ViT-H-14").vision
    assert not spec.text_at_root


def test_a_slash_is_read_as_openclip_reads_it():
    assert clip_models.get_model_spec("ViT-B/32") == clip_models.get_model_spec("ViT-B-32")


def test_preprocess_dict_is_preprocess_data_without_augmentation():
    assert clip_models.get_model_spec("ViT-Ti-4-24").preprocess.to_dict() == {
        "size": [24, 24],
        "mode": "RGB",
        "mean": [0.48145466, 0.4578275, 0.40821073],
        "std": [0.26862954, 0.26130258, 0.27577711],
        "interpolation": "bicubic",
        "resize_mode": "shortest",
        "fill_color": 0,
    }


@pytest.mark.parametrize("name", clip_models.list_models())
def test_specs_survive_json(name):
    spec = clip_models.get_model_spec(name)
    assert ModelSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ViT-B-23", "unknown model 'ViT-B-23'; did you mean ViT-B-32"),
        ("vit_b_16", "did you mean ViT-B-16"),
        ("xyz", "'clip-models list' or list_models() names them all"),
        ("text-512", "unknown model 'text-512'"),
    ],
)
def test_unknown_names_are_answered_with_close_ones(name, message):
    with pytest.raises(ClipModelsError) as caught:
        clip_models.get_model_spec(name)
    assert message in str(caught.value)


def test_specs_need_no_torch():
    code = "import sys, clip_models.specs as s; s.get_model_spec('RN50'); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def openclip_json(**changes) -> str:
    model = to_open_clip_config(clip_models.get_model_spec("ViT-B-32"))["model_cfg"]
    return json.dumps(model | changes)


def test_a_folder_of_configs_gets_names_and_the_rest_of_the_folder_is_passed_over(tmp_path):
    (tmp_path / "mine.json").write_text(openclip_json(quick_gelu=True))
    (tmp_path / "notes.json").write_text('{"author": "me"}')
    (tmp_path / "more.toml").write_text('half = { extends = "ViT-B-32", vision.layers = 6 }\n')
    assert add_model_config(tmp_path) == ["mine", "half"]
    assert {"mine", "half"} <= set(clip_models.list_models())
    b32 = clip_models.get_model_spec("ViT-B-32")
    assert clip_models.get_model_spec("mine") == replace(b32, name="mine", quick_gelu=True)
    assert clip_models.get_model_spec("half") == replace(b32, name="half", vision=replace(b32.vision, layers=6))


def test_a_name_may_be_given_anew_but_not_a_built_in_one(tmp_path):
    file = tmp_path / "mine.json"
    for layers in (6, 3):
        file.write_text(openclip_json(vision_cfg={"layers": layers}))
        add_model_config(file)
        assert clip_models.get_model_spec("mine").vision.layers == layers
    same = tmp_path / "ViT-B-32.json"
    same.write_text(openclip_json())
    assert add_model_config(same) == ["ViT-B-32"]
    same.write_text(openclip_json(quick_gelu=True))
    with pytest.raises(ClipModelsError, match="'ViT-B-32' is the name of a different built-in architecture"):
        add_model_config(same)
    assert not clip_models.get_model_spec("ViT-B-32").quick_gelu


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("bad.json", "{", "bad.json: Expecting property name"),
        ("bad.json", '{"embed_dim": 8}', "bad.json: model_cfg of 'bad' lacks the key 'vision_cfg'"),
        (
            "bad.json",
            openclip_json(vision_cfg={"layer": 3}),
            "bad.json: unknown key 'layer' in vision_cfg; did you mean",
        ),
        ("bad.toml", "a = ", "bad.toml: Invalid value"),
        ("bad.toml", "a = 3", "bad.toml: 'a' must be a table, not 3"),
        ("bad.toml", "[a]\nembed_dim = 8\nvison = {}", "bad.toml: a: unknown key vison; did you mean"),
        ("bad.toml", "[a]\nextends = 3", "bad.toml: a: extends of 'a' must be a name or a list of names, not 3"),
        ("bad.toml", "[a]\nembed_dim = 8\nvision = {}\npreprocess = 3", "preprocess must be a table, not 3"),
        ("bad.toml", '[a]\nextends = "b"', "bad.toml: a: 'a' extends 'b', which is not an entry"),
        ("bad.toml", '[a]\nextends = "b"\n[b]\nextends = "a"', "bad.toml: a: 'a' extends itself, through b"),
        ("bad.toml", '[siglip]\nextends = "ViT-B-32"', "'siglip' is the name of a different built-in architecture"),
        ("bad.toml", "[b]\nabstract = true", "bad.toml holds no model config"),
    ],
)
def test_bad_files_are_named_and_nothing_is_added(name, content, message, tmp_path):
    (tmp_path / "a-good-one.json").write_text(openclip_json())
    (tmp_path / name).write_text(content)
    before = clip_models.list_models()
    for path in (tmp_path / name, tmp_path):
        if path == tmp_path and "holds no model config" in message:
            continue  # the folder holds a good one
        with pytest.raises(ClipModelsError) as caught:
            add_model_config(path)
        assert message.split(": ")[-1] in str(caught.value)
        assert "\n" not in str(caught.value)
        assert clip_models.list_models() == before


def test_a_path_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ClipModelsError, match="nowhere is neither a file nor a folder"):
        add_model_config(tmp_path / "nowhere")


def test_every_abstract_entry_is_extended():
    tables = families.built_in()
    used = set()
    for entry in tables.values():
        parents = entry.get("extends", ())
        used |= {parents} if isinstance(parents, str) else set(parents)
    # A configuration may also stand for itself: it is looked up by the encoder's name.
    assert {name for name, entry in tables.items() if entry.get("abstract")} - used == set()
