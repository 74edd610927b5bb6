"""Weights of one tower alone."""

import types
from dataclasses import replace

import pytest
import torch

from clip_models import ClipModelsError, HFTextConfig, TimmConfig, TokenizerConfig, create_model, get_model_spec

NAME = "ViT-Ti-4-24"


def refusal(call) -> str:
    with pytest.raises(ClipModelsError) as caught:
        call()
    return str(caught.value)


@pytest.fixture(scope="module")
def other():
    return create_model(NAME, seed=5)


@pytest.mark.parametrize("layout", ["whole model", "tower", "training"])
@pytest.mark.parametrize("tower", ["image", "text"])
@pytest.mark.parametrize("custom", [False, True])
def test_one_tower_from_a_file(tiny, other, tmp_path, layout, tower, custom):
    state = dict(other.state_dict())
    mine = {k: v for k, v in state.items() if k.startswith("visual.") == (tower == "image") and "logit" not in k}
    if layout == "tower":
        state = {k.removeprefix("visual."): v for k, v in mine.items()}
    if layout == "training":
        state = {"state_dict": {f"module.{k}": v for k, v in state.items()}, "epoch": 1}
    torch.save(state, tmp_path / "x.pt")
    option = {f"pretrained_{tower}_path": tmp_path / "x.pt"}
    model = create_model(NAME, seed=0, force_custom_text=custom, **option)
    for name, tensor in model.state_dict().items():
        plain = name.removeprefix("text.")
        assert torch.equal(tensor, (mine if plain in mine else tiny.state_dict())[plain])


def test_a_tower_that_does_not_fit_is_counted_and_named(other, tmp_path):
    state = {k: v for k, v in other.state_dict().items() if k.startswith("visual.")}
    del state["visual.ln_post.bias"]
    state |= {"visual.proj": torch.zeros(2, 2), "visual.new": torch.zeros(1)}
    torch.save(state, tmp_path / "x.pt")
    message = refusal(lambda: create_model(NAME, pretrained_image_path=tmp_path / "x.pt"))
    assert "does not fit the image tower of 'ViT-Ti-4-24'" in message
    assert "1 missing (visual.ln_post.bias); 1 extra (visual.new); 1 of another shape (visual.proj [2, 2] in" in message


def test_the_default_weights_of_a_text_encoder(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.RobertaConfig(
        vocab_size=49408, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
    )  # fmt: skip
    donor = transformers.RobertaModel(config, add_pooling_layer=False)
    donor.save_pretrained(tmp_path)
    text = HFTextConfig(model_name=str(tmp_path), config=config.to_dict())
    spec = replace(get_model_spec(NAME), name="tiny-roberta", text=text)
    spec = replace(spec, tokenizer=TokenizerConfig(kind="hf", name=str(tmp_path)))
    model = create_model(spec, pretrained_text=True)
    for name, tensor in donor.state_dict().items():
        assert torch.equal(model.text.transformer.state_dict()[name], tensor), name
    assert not torch.equal(
        create_model(spec).text.transformer.embeddings.word_embeddings.weight, donor.embeddings.word_embeddings.weight
    )
    gone = replace(spec, text=replace(text, model_name=str(tmp_path / "gone")))
    assert "the default weights of" in refusal(lambda: create_model(gone, pretrained_text=True))


def test_the_default_weights_of_a_timm_trunk(monkeypatch):
    timm = pytest.importorskip("timm")
    size = {"depth": 1, "embed_dim": 16, "num_heads": 2}
    vision = TimmConfig(model_name="vit_tiny_patch16_224", image_size=224, pool="", proj="linear", model_kwargs=size)
    base = get_model_spec(NAME)
    spec = replace(base, name="tiny-timm", vision=vision, preprocess=replace(base.preprocess, size=(224, 224)))
    donor = timm.create_model("vit_tiny_patch16_224", **size)
    model = create_model(spec)
    fake = types.SimpleNamespace(create_model=lambda name, pretrained: donor)
    monkeypatch.setattr("clip_models.weights.towers.require", lambda *_: fake)
    from clip_models.weights.towers import load_default_tower

    load_default_tower(model, "image")
    assert torch.equal(model.visual.trunk.patch_embed.proj.weight, donor.patch_embed.proj.weight)
    donor.blocks = torch.nn.Sequential()
    assert "lack" in refusal(lambda: load_default_tower(model, "image"))


def test_native_towers_have_no_default_weights(tiny):
    model = create_model(NAME, seed=0, pretrained_image=True, pretrained_text=True)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), tiny.parameters(), strict=True))
