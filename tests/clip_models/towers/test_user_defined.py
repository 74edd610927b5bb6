"""Towers and tokenizers from outside the package, by a registered name and by `module:class` in a spec."""

import pytest
import torch

import clip_models
from clip_models import ClipModelsError, ModelSpec
from clip_models.specs import IMAGE_TOWERS, TEXT_TOWERS, TOKENIZERS, add_model_config, table
from clip_models.tokenizers.clip_bpe import ClipTokenizer
from clip_models.weights.load import load_pretrained
from tests.support.towers import MeanColor, MeanColorConfig, WordBag, WordBagConfig


class FirstLetters(ClipTokenizer):
    """CLIP's tokens of the first four letters."""

    own_cleaning = "whitespace"

    def encode(self, text):
        return super().encode(text[:4])


@pytest.fixture(params=["names", "paths"])
def kinds(request, monkeypatch):
    """The kinds of a spec: (image tower, text tower, tokenizer)."""
    if request.param == "paths":
        return "tests.support.towers:MeanColorConfig", "tests.support.towers:WordBagConfig", "clip-bpe"
    for registry in (IMAGE_TOWERS, TEXT_TOWERS, TOKENIZERS):
        monkeypatch.setattr(registry, "_known", dict(registry._known))
    IMAGE_TOWERS.add("mean-color")(MeanColorConfig)
    TEXT_TOWERS.add("word-bag")(WordBagConfig)
    TOKENIZERS.add("first-letters")(FirstLetters)
    return "mean-color", "word-bag", "first-letters"


@pytest.fixture
def spec(kinds):
    image, text, tokenizer = kinds
    return ModelSpec.from_dict(
        {
            "name": "own",
            "embed_dim": 16,
            "vision": {"kind": image, "image_size": 32, "bias": True},
            "text": {"kind": text, "context_length": 9},
            "tokenizer": {"kind": tokenizer},
        }
    )


def test_a_spec_names_the_towers_and_survives_json(spec, kinds):
    assert spec.vision == MeanColorConfig(image_size=32, bias=True)
    assert spec.text == WordBagConfig(context_length=9)
    assert (spec.vision.kind, spec.text.kind) == kinds[:2]
    assert ModelSpec.from_dict(spec.to_dict()) == spec


def test_such_a_model_is_built_saved_and_loaded(spec, tmp_path):
    model = clip_models.create_model(spec, seed=0).eval()
    assert isinstance(model.visual, MeanColor)
    assert isinstance(model.text, WordBag)
    image = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    text = clip_models.get_tokenizer(spec)(["a red circle", ""])
    features = model.encode_image(image), model.encode_text(text)
    assert [feature.shape for feature in features] == [(2, 16), (2, 16)]
    clip_models.save_model(tmp_path / "own.safetensors", model, spec)
    read, found = clip_models.load_model(tmp_path / "own.safetensors")
    again = load_pretrained(spec, tmp_path / "own.safetensors")
    assert found == spec
    for loaded in (read.eval(), again.eval()):
        torch.testing.assert_close((loaded.encode_image(image), loaded.encode_text(text)), features, rtol=0, atol=0)


def test_such_a_model_is_locked_and_listed_as_others(spec):
    model = clip_models.create_model(spec, seed=0)
    assert model.layer_groups()["text"] == [["text.words.weight"], ["text.project.weight", "text.project.bias"]]
    assert len(model.blocks()) == 2
    model.lock_image_tower()
    model.lock_text_tower(1)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {"logit_scale", "text.project.weight", "text.project.bias"}
    with pytest.raises(ClipModelsError, match="MeanColor has no intermediate outputs"):
        model.forward_intermediates(image=torch.zeros(1, 3, 32, 32))


def test_such_a_model_has_no_open_clip_config(spec):
    with pytest.raises(ClipModelsError, match="cannot express a tower of the kind"):
        clip_models.to_open_clip_config(spec)


def test_a_table_of_architectures_may_name_them(tmp_path, monkeypatch):
    monkeypatch.setattr(table, "_added", {})
    (tmp_path / "own.toml").write_text(
        '[own]\nembed_dim = 16\nvision = { kind = "tests.support.towers:MeanColorConfig", image_size = 32 }\n'
    )
    assert add_model_config(tmp_path / "own.toml") == ["own"]
    assert clip_models.get_model_spec("own").vision == MeanColorConfig(image_size=32)


def test_a_tokenizer_is_chosen_by_its_kind(monkeypatch):
    monkeypatch.setattr(TOKENIZERS, "_known", dict(TOKENIZERS._known))
    TOKENIZERS.add("first-letters")(FirstLetters)
    tokenizer = clip_models.get_tokenizer("ViT-B-32", kind="first-letters")
    assert isinstance(tokenizer, FirstLetters)
    assert tokenizer.clean == "whitespace"
    assert tokenizer.encode("photograph") == tokenizer.encode("phot")


@pytest.mark.parametrize(
    ("part", "kind", "message"),
    [
        ("vision", "vti", "model spec: vision.kind = 'vti': there is no image tower 'vti'; did you mean 'vit'?"),
        ("text", "no.such:Tower", "text.kind = 'no.such:Tower': text tower 'no.such:Tower' cannot be imported"),
        ("text", "tests.support.towers:WordBag", "must name a config class that extends TextConfig"),
        ("tokenizer", "clip_bpe", "tokenizer.kind: there is no tokenizer 'clip_bpe'; did you mean 'clip-bpe'"),
    ],
)
def test_an_unknown_kind_is_named(part, kind, message):
    with pytest.raises(ClipModelsError) as caught:
        ModelSpec.from_dict({"name": "x", "embed_dim": 8, part: {"kind": kind}})
    assert message in str(caught.value)
