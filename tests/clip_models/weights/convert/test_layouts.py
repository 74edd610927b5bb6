"""OpenCLIP's own layouts and what training and OpenAI put into them."""

from dataclasses import replace

import pytest
import torch

from clip_models import ClipModelsError, CLIPTextConfig, ModelSpec, PreprocessConfig, TokenizerConfig, ViTConfig
from clip_models.model import build_model
from clip_models.weights.convert.formats import FORMATS, detect
from clip_models.weights.fit import build_empty
from clip_models.weights.load import load_into, load_pretrained, model_from_tensors

SPEC = ModelSpec(
    name="tiny",
    embed_dim=24,
    vision=ViTConfig(image_size=32, patch_size=8, width=32, layers=2, head_width=8),
    text=CLIPTextConfig(context_length=12, vocab_size=60, width=16, heads=2, layers=2),
    preprocess=PreprocessConfig(size=(32, 32)),
    tokenizer=TokenizerConfig(kind="hf", name="x"),
)
CUSTOM = replace(SPEC, custom_text=True)


def state_of(spec, seed=0):
    torch.manual_seed(seed)
    return build_model(spec).state_dict()


def assert_equal(model, state):
    assert model.state_dict().keys() == state.keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name]), name


def refusal(call) -> str:
    with pytest.raises(ClipModelsError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_text_tower_goes_where_the_spec_has_it():
    root = state_of(SPEC)
    custom = {
        name if name.startswith(("visual.", "logit_")) else f"text.{name}": tensor for name, tensor in root.items()
    }
    assert_equal(model_from_tensors(CUSTOM, root, "x"), custom)
    assert_equal(model_from_tensors(SPEC, custom, "x"), root)
    image, text = torch.randn(2, 3, 32, 32), torch.randint(0, 60, (2, 12))
    with torch.no_grad():
        outputs = [model_from_tensors(spec, root, "x").eval()(image, text) for spec in (SPEC, CUSTOM)]
    assert all(torch.equal(a, b) for a, b in zip(*outputs, strict=True))


def test_every_format_is_told_by_its_markers():
    for known in FORMATS:
        for marker in known.markers:
            assert detect([marker, "other"]) is known
    assert detect(["visual.proj"]).name == "OpenCLIP"


def openai_state(quick):
    state = {name: tensor.half() for name, tensor in state_of(quick).items()}
    sizes = {"input_resolution": 32, "context_length": 12, "vocab_size": 60}
    return state | {name: torch.tensor(size) for name, size in sizes.items()}


def test_openais_own_state_dict_is_of_quickgelu(tmp_path):
    quick = replace(SPEC, name="tiny-quickgelu", quick_gelu=True)
    torch.save(openai_state(quick), tmp_path / "openai.pt")
    model = load_pretrained(quick, tmp_path / "openai.pt")
    assert_equal(model, {name: tensor.half().float() for name, tensor in state_of(quick).items()})
    message = refusal(lambda: load_pretrained(SPEC, tmp_path / "openai.pt"))
    assert "these weights were trained with QuickGELU, as their format, that of OpenAI says" in message
    assert "ask for its quickgelu variant or force_quick_gelu=True" in message
    assert not load_pretrained(SPEC, tmp_path / "openai.pt", sure_of=["quick_gelu"]).spec.quick_gelu


def test_a_learnt_bias_is_kept_in_a_plain_spec():
    """OpenCLIP cannot load what it trained with --siglip into the plain architecture."""
    state = state_of(replace(SPEC, init_logit_bias=-10.0)) | {"logit_bias": torch.tensor([-12.5])}
    model = model_from_tensors(SPEC, state, "x")
    assert model.spec == replace(SPEC, init_logit_bias=-12.5)
    assert (model.logit_bias.item(), model.logit_bias.shape) == (-12.5, ())
    assert len(model(torch.zeros(1, 3, 32, 32), torch.zeros(1, 12, dtype=torch.int64))) == 4


def test_weights_without_a_bias_get_one_that_changes_nothing():
    spec = replace(SPEC, init_logit_bias=-10.0)
    model = model_from_tensors(spec, state_of(SPEC), "x")
    assert model.logit_bias.item() == 0
    assert model.spec == spec


def test_load_into_a_model_or_not_at_all(tmp_path):
    state = state_of(SPEC, seed=1)
    torch.save(state, tmp_path / "x.pt")
    model = build_model(SPEC)
    parameter = model.visual.proj
    load_into(model, tmp_path / "x.pt")
    assert_equal(model, state)
    assert model.visual.proj is parameter  # an optimizer keeps hold of it
    torch.save(state_of(SPEC) | {"logit_bias": torch.zeros(())}, tmp_path / "bias.pt")
    assert "1 extra (logit_bias)" in refusal(lambda: load_into(model, tmp_path / "bias.pt"))
    assert_equal(model, state)


def test_an_empty_model_draws_no_random_numbers():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    build_empty(SPEC)
    assert torch.rand(1) == expected
