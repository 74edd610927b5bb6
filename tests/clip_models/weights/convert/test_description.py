"""What stands beside weights, or in them, against what is asked for. Replays OpenCLIP's issues #771 and #1068."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

import clip_models
from clip_models import (
    ClipModelsError,
    CLIPTextConfig,
    ModelSpec,
    PreprocessConfig,
    TimmConfig,
    TokenizerConfig,
    ViTConfig,
)
from clip_models.model import build_model
from clip_models.specs import get_model_spec
from clip_models.weights.convert.description import network_difference
from clip_models.weights.convert.folders import save_huggingface, save_open_clip
from clip_models.weights.load import describe_source, find_weights, load_pretrained
from clip_models.weights.save import save_model

HALF = (0.5, 0.5, 0.5)
NAME = "ViT-Ti-4-24"
SIGLIP = ModelSpec(
    name="tiny-siglip",
    embed_dim=16,
    custom_text=True,
    init_logit_bias=-10.0,
    vision=TimmConfig(
        model_name="vit_base_patch16_siglip_224", image_size=16, pool="map", proj="none",
        model_kwargs={"embed_dim": 16, "depth": 1, "num_heads": 2, "patch_size": 8},
    ),
    text=CLIPTextConfig(
        context_length=6, vocab_size=50, width=16, heads=2, layers=1, no_causal_mask=True, pool_type="last",
        proj_bias=True,
    ),
    preprocess=PreprocessConfig(size=(16, 16), mean=HALF, std=HALF, resize_mode="squash"),
    tokenizer=TokenizerConfig(kind="hf", name="x"),
)  # fmt: skip


@pytest.fixture(scope="module")
def quick(tiny):
    """The tiny model, as if it had been trained with QuickGELU."""
    spec = replace(tiny.spec, name=f"{NAME}-quickgelu", quick_gelu=True)
    model = build_model(spec)
    model.load_state_dict(tiny.state_dict())
    return model


def refusal(call) -> str:
    with pytest.raises(ClipModelsError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def folder_of(tmp_path, model, **treatment):
    """OpenCLIP's folder, with another preprocessing of images."""
    model_spec = replace(model.spec, preprocess=replace(model.spec.preprocess, **treatment))
    build = build_model(model_spec)
    build.load_state_dict(model.state_dict())
    save_open_clip(tmp_path / "folder", build)
    return tmp_path / "folder"


@pytest.mark.slow
def test_771_quickgelu_weights_are_not_run_with_gelu(tmp_path, quick, tiny):
    """#771: trained from OpenAI's weights, saved, and evaluated under the plain name: other numbers, no word of it."""
    save_model(tmp_path / "tuned.safetensors", quick, quick.spec)
    for path in (tmp_path / "tuned.safetensors", folder_of(tmp_path, quick)):
        message = refusal(lambda path=path: load_pretrained(tiny.spec, path))
        assert "these weights were trained with QuickGELU" in message
        assert "force_quick_gelu=True" in message
    model = load_pretrained(replace(tiny.spec, quick_gelu=True), tmp_path / "folder")
    assert model.spec.quick_gelu
    assert "trained with GELU" in refusal(lambda: load_pretrained(quick.spec, folder_of(tmp_path / "gelu", tiny)))


def test_771_the_message_names_the_architecture(tmp_path):
    spec = get_model_spec("ViT-B-32-quickgelu")
    quick = replace(spec, vision=replace(spec.vision, layers=1), text=replace(spec.text, layers=1))
    save_model(tmp_path / "x.safetensors", build_model(quick), quick)
    asked = replace(quick, name="ViT-B-32", quick_gelu=False)
    message = refusal(lambda: load_pretrained(asked, tmp_path / "x.safetensors"))
    assert "ask for ViT-B-32-quickgelu or force_quick_gelu=True" in message


def test_771_a_download_is_known_by_its_place(tmp_path, tiny):
    """OpenAI's weights as the hub's cache holds them, loaded as a bare file."""
    folder = tmp_path / "models--timm--vit_base_patch32_clip_224.openai" / "snapshots" / "0"
    folder.mkdir(parents=True)
    save_file(tiny.state_dict(), folder / "open_clip_model.safetensors")
    message = refusal(lambda: load_pretrained(tiny.spec, folder / "open_clip_model.safetensors"))
    assert "trained with QuickGELU, as the registry's entry ViT-B-32" in message


@pytest.mark.parametrize("bare_file", [False, True])
def test_1068_preprocessing_follows_the_weights(tmp_path, tiny, bare_file):
    """#1068: SigLIP 2 from a local file of a downloaded folder came with CLIP's mean and std."""
    path = folder_of(tmp_path, tiny, mean=HALF, std=HALF, resize_mode="squash")
    path = path / "open_clip_model.safetensors" if bare_file else path
    _, val = clip_models.create_model_from_pretrained(NAME, path)
    assert (val.config.mean, val.config.std, val.config.resize_mode) == (HALF, HALF, "squash")
    asked = replace(tiny.spec, preprocess=replace(tiny.spec.preprocess, mean=(0.1, 0.2, 0.3)))
    message = refusal(lambda: load_pretrained(asked, path))
    assert "were trained on images with mean [0.5, 0.5, 0.5], std [0.5, 0.5, 0.5], bicubic, squash, but mean" in message
    assert "insist with force_preprocess_cfg" in message
    assert load_pretrained(asked, path, sure_of=["preprocess"]).spec.preprocess == asked.preprocess


def test_1068_siglip_weights_imply_their_preprocessing(tmp_path):
    pytest.importorskip("timm")
    save_file(build_model(SIGLIP).state_dict(), tmp_path / "x.safetensors")
    assert load_pretrained(SIGLIP, tmp_path / "x.safetensors").spec == SIGLIP
    asked = replace(SIGLIP, preprocess=PreprocessConfig(size=(16, 16)))
    message = refusal(lambda: load_pretrained(asked, tmp_path / "x.safetensors"))
    assert "holds weights of SigLIP, trained on images with mean 0.5 and std 0.5" in message
    assert load_pretrained(asked, tmp_path / "x.safetensors", sure_of=["preprocess"]).spec == asked
    save_model(tmp_path / "described.safetensors", build_model(asked), asked)
    assert load_pretrained(asked, tmp_path / "described.safetensors").spec == asked


def test_the_described_tokenizer_is_taken_or_contradicts(tmp_path, tiny):
    spec = replace(tiny.spec, tokenizer=TokenizerConfig(clean="whitespace"))
    save_model(tmp_path / "x.safetensors", tiny, spec)
    assert load_pretrained(tiny.spec, tmp_path / "x.safetensors").spec.tokenizer.clean == "whitespace"
    other = replace(tiny.spec, tokenizer=TokenizerConfig(clean="canonicalize"))
    message = refusal(lambda: load_pretrained(other, tmp_path / "x.safetensors"))
    assert "its metadata names the tokenizer" in message
    assert "'clean': 'canonicalize'" in message
    assert (
        load_pretrained(other, tmp_path / "x.safetensors", sure_of=["tokenizer"]).spec.tokenizer.clean == "canonicalize"
    )


def test_a_flag_is_named_where_it_is_all_that_differs():
    specs = {name: get_model_spec(name) for name in ("ViT-B-32", "ViT-B-32-256", "ViT-B-16")}
    assert network_difference(specs["ViT-B-32-256"], specs["ViT-B-32"]).endswith("(force_image_size=[256, 256])")
    difference = network_difference(specs["ViT-B-32-256"], specs["ViT-B-16"])
    assert difference == "vision.image_size [256, 256] against [224, 224], vision.patch_size 32 against 16"


def test_another_architecture_beside_the_weights(tmp_path, tiny):
    path = folder_of(tmp_path, tiny)
    heads = replace(tiny.spec, vision=replace(tiny.spec.vision, head_width=48))
    message = refusal(lambda: load_pretrained(heads, path))
    assert "vision.head_width 32 against 48; ask for that model (as " in message
    assert "open_clip_config.json says)" in message


def test_weights_that_say_nothing_are_taken_at_the_specs_word(tmp_path, tiny):
    save_file(tiny.state_dict(), tmp_path / "x.safetensors")
    assert describe_source(tmp_path / "x.safetensors") is None
    assert load_pretrained(replace(tiny.spec, quick_gelu=True), tmp_path / "x.safetensors").spec.quick_gelu


def test_sources_are_described_without_reading_them(tmp_path, tiny, monkeypatch):
    folder = folder_of(tmp_path, tiny, mean=HALF)
    save_model(tmp_path / "ours.safetensors", tiny, tiny.spec)
    monkeypatch.setattr("clip_models.weights.load.read_tensors", None)
    spec = describe_source(folder)
    assert spec.preprocess.mean == HALF
    assert network_difference(spec, tiny.spec) == ""
    assert describe_source(tmp_path / "ours.safetensors") == tiny.spec


def test_a_config_of_something_else_is_passed_over(tmp_path, tiny):
    save_file(tiny.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    assert describe_source(tmp_path) is None
    (tmp_path / "open_clip_config.json").write_text("{")
    assert "is not readable JSON" in refusal(lambda: describe_source(tmp_path))
    (tmp_path / "open_clip_config.json").write_text("[]")
    assert "holds no JSON object" in refusal(lambda: load_pretrained(tiny.spec, tmp_path))


def test_names_come_from_the_folder(tmp_path, tiny):
    folder = folder_of(tmp_path, tiny)
    assert describe_source(folder).name == "folder"
    cached = tmp_path / "models--org--my-clip" / "snapshots" / "0123"
    cached.parent.mkdir(parents=True)
    folder.rename(cached)
    assert describe_source(cached).name == "my-clip"


def test_each_layout_has_its_own_config(tmp_path, tiny):
    """A folder with the weights twice, for OpenCLIP and for transformers."""
    folder = folder_of(tmp_path, tiny, mean=HALF)
    save_huggingface(folder, tiny)
    assert describe_source(folder).preprocess.mean == HALF
    assert describe_source(folder / "model.safetensors").preprocess.mean == tiny.spec.preprocess.mean
    for name, mean in (("open_clip_model", HALF), ("model", tiny.spec.preprocess.mean)):
        assert load_pretrained(tiny.spec, folder / f"{name}.safetensors").spec.preprocess.mean == mean
    with pytest.raises(ClipModelsError, match="there is no weights file"):
        describe_source(folder / "other.safetensors")


def test_the_weights_of_a_folder(tmp_path, tiny):
    assert "there are no weights in" in refusal(lambda: find_weights(tmp_path))
    (tmp_path / "epoch_1.pt").touch()
    assert find_weights(tmp_path).name == "epoch_1.pt"
    (tmp_path / "epoch_2.pt").touch()
    assert "holds several weights files (epoch_1.pt, epoch_2.pt); name one" in refusal(lambda: find_weights(tmp_path))
    (tmp_path / "pytorch_model.bin").touch()
    (tmp_path / "model.safetensors").touch()
    assert find_weights(tmp_path).name == "model.safetensors"


def test_what_can_be_insisted_on(tmp_path, tiny):
    save_model(tmp_path / "x.safetensors", tiny, tiny.spec)
    asked = replace(tiny.spec, custom_text=True, vision=replace(tiny.spec.vision, patch_dropout=0.5))
    model = load_pretrained(asked, tmp_path / "x.safetensors", sure_of=["custom_text", "patch_dropout"])
    assert model.spec == asked
    assert "text.positional_embedding" in model.state_dict()
    message = refusal(lambda: load_pretrained(asked, tmp_path / "x.safetensors", sure_of=["width"]))
    assert "'width' cannot be insisted on; choose from quick_gelu, custom_text, preprocess" in message


VIT = ModelSpec(name="x", embed_dim=512)
SAME = {
    "training": replace(VIT, vision=replace(VIT.vision, patch_dropout=0.5, output_tokens=True)),
    "mlp": replace(VIT, vision=replace(VIT.vision, mlp_ratio=4.0001)),
    "border": replace(VIT, vision=replace(VIT.vision, image_size=230), preprocess=PreprocessConfig(size=(230, 230))),
    "pair": replace(VIT, vision=replace(VIT.vision, image_size=(224, 224))),
    "end token": replace(VIT, text=replace(VIT.text, pool_type="eos", eos_id=49407)),
    "layout": replace(VIT, custom_text=True),
}
OTHER = {
    "text.pool_type argmax against last": replace(VIT, text=replace(VIT.text, pool_type="last")),
    "text.no_causal_mask False against True": replace(VIT, text=replace(VIT.text, no_causal_mask=True)),
    "vision.norm_eps 1e-05 against 1e-06": replace(VIT, vision=replace(VIT.vision, norm_eps=1e-6)),
    "embed_dim 512 against 256": replace(VIT, embed_dim=256),
    "vision.image_size [224, 224] against [336, 336] (force_image_size=[224, 224])": replace(
        VIT, vision=replace(VIT.vision, image_size=336), preprocess=PreprocessConfig(size=(336, 336))
    ),
    "text.context_length 77 against 64 (force_context_length=77)": replace(
        VIT, text=replace(VIT.text, context_length=64)
    ),
}


@pytest.mark.parametrize("other", SAME.values(), ids=SAME)
def test_networks_that_compute_the_same(other):
    assert network_difference(VIT, other) == network_difference(other, VIT) == ""


@pytest.mark.parametrize(("message", "other"), OTHER.items(), ids=OTHER)
def test_networks_that_do_not(message, other):
    assert network_difference(VIT, other) == message


def test_other_kinds_of_tower_differ():
    assert network_difference(VIT, replace(VIT, vision=TimmConfig(model_name="x"))).startswith("vision ")
    assert network_difference(VIT, replace(VIT, vision=ViTConfig(layers=3))) == "vision.layers 12 against 3"


def test_our_own_description_survives_in_a_folder(tmp_path, tiny):
    """A file of ours beside an open_clip_config.json of another model: what is in the file counts."""
    folder = folder_of(tmp_path, tiny)
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["embed_dim"] = 7
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    save_model(folder / "open_clip_model.safetensors", tiny, tiny.spec)
    model = load_pretrained(tiny.spec, folder)
    assert torch.equal(model.visual.proj, tiny.visual.proj)
