"""Hugging Face's CLIPModel, MetaClip2Model and SiglipModel against ours with the same weights, both ways."""

import json
from dataclasses import replace

import pytest
import torch

from clip_models import ClipModelsError, CLIPTextConfig, ModelSpec, PreprocessConfig, TokenizerConfig, ViTConfig
from clip_models.model import build_model
from clip_models.weights.convert.folders import save_huggingface
from clip_models.weights.convert.huggingface import spec_from_huggingface, to_huggingface
from clip_models.weights.load import describe_source, from_huggingface, load_pretrained
from tests.support.meta import meta_device

transformers = pytest.importorskip("transformers")
pytest.importorskip("timm")
pytestmark = pytest.mark.parity

CLASSES = {"clip": "CLIP", "metaclip_2": "MetaClip2", "siglip": "Siglip"}
SPEC = ModelSpec(
    name="tiny",
    embed_dim=24,
    vision=ViTConfig(image_size=32, patch_size=8, width=32, layers=2, head_width=8, mlp_ratio=2.1),
    text=CLIPTextConfig(context_length=12, vocab_size=120, width=16, heads=2, layers=3, pool_type="eos", eos_id=100),
    preprocess=PreprocessConfig(size=(32, 32)),
    tokenizer=TokenizerConfig(kind="hf", name="x"),
)
SIGLIP = {
    "model_type": "siglip",
    "text_config": {
        "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
        "vocab_size": 120, "max_position_embeddings": 12, "bos_token_id": None, "eos_token_id": None,
    },
    "vision_config": {
        "hidden_size": 48, "intermediate_size": 100, "num_hidden_layers": 3, "num_attention_heads": 4,
        "image_size": 32, "patch_size": 8,
    },
}  # fmt: skip


def theirs(config) -> torch.nn.Module:
    kind = CLASSES[config["model_type"]]
    parts = {key: value for key, value in config.items() if key not in ("model_type", "architectures")}
    torch.manual_seed(1)
    return getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**parts)).eval()


def randomise(model):
    """Every weight random, so that one in a wrong place is seen."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model


def assert_same_outputs(model, reference, eos):
    generator = torch.Generator().manual_seed(3)
    image = torch.randn(4, 3, 32, 32, generator=generator)
    text = torch.randint(1, eos, (4, 12), generator=generator)
    text[torch.arange(4), torch.tensor([3, 11, 7, 5])] = eos
    text[3, 9] = eos  # the first one counts
    with torch.no_grad():
        expected = reference(input_ids=text, pixel_values=image)
        image_features, text_features, scale, *bias = model.eval()(image, text)
        logits = scale * image_features @ text_features.T + (bias[0] if bias else 0)
    torch.testing.assert_close(image_features, expected.image_embeds, atol=1e-5, rtol=0)
    torch.testing.assert_close(text_features, expected.text_embeds, atol=1e-5, rtol=0)
    torch.testing.assert_close(logits, expected.logits_per_image, atol=1e-5, rtol=1e-5)


TEXT = SPEC.text
SPECS = {
    "gelu": SPEC,
    "quick_gelu": replace(SPEC, quick_gelu=True),
    "tanh": replace(SPEC, vision=replace(SPEC.vision, gelu_tanh=True), text=replace(TEXT, gelu_tanh=True)),
    "under text.": replace(SPEC, custom_text=True),
    "argmax": replace(SPEC, text=replace(TEXT, pool_type="argmax", eos_id=None)),
    "eos 2": replace(SPEC, text=replace(TEXT, eos_id=2)),
}


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_clip_to_transformers_and_back(spec):
    model = randomise(build_model(spec))
    config, tensors = to_huggingface(model)
    reference = theirs(config)
    reference.load_state_dict(tensors)  # strict
    assert config["model_type"] == ("metaclip_2" if spec.text.eos_id == 2 else "clip")
    assert_same_outputs(model, reference, 2 if spec.text.eos_id == 2 else 119 if spec.text.eos_id is None else 100)
    again = from_huggingface(reference.config.to_diff_dict(), reference.state_dict(), name="tiny")
    state = {name.removeprefix("text."): tensor for name, tensor in model.state_dict().items()}
    assert again.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.state_dict().items())
    pool = replace(again.spec.text, pool_type=spec.text.pool_type, eos_id=spec.text.eos_id)
    assert (again.spec.vision, pool, again.spec.quick_gelu) == (
        replace(spec.vision, mlp_ratio=67 / 32), spec.text, spec.quick_gelu,
    )  # fmt: skip


def test_clip_from_transformers_with_its_defaults():
    reference = randomise(theirs({"model_type": "clip", "vision_config": {"num_hidden_layers": 1, "image_size": 32},
                                  "text_config": {"num_hidden_layers": 1, "max_position_embeddings": 12}}))  # fmt: skip
    model = from_huggingface(reference.config.to_diff_dict(), reference.state_dict())
    assert model.spec.quick_gelu
    assert model.spec.tokenizer == TokenizerConfig()
    assert_same_outputs(model, reference, 49407)


@pytest.mark.parametrize("act", ["gelu_pytorch_tanh", "gelu"])
def test_siglip_from_transformers_and_back(act):
    config = {**SIGLIP, **{k: {**SIGLIP[k], "hidden_act": act} for k in ("text_config", "vision_config")}}
    reference = randomise(theirs(config))
    model = from_huggingface(reference.config.to_diff_dict(), reference.state_dict())
    assert (model.spec.preprocess.mean, model.spec.preprocess.resize_mode) == ((0.5, 0.5, 0.5), "squash")
    assert_same_outputs(model, reference, 119)
    config, tensors = to_huggingface(model)
    again = theirs(config)
    again.load_state_dict(tensors)
    assert all(torch.equal(tensor, reference.state_dict()[name]) for name, tensor in again.state_dict().items())
    assert_same_outputs(model, again, 119)


@pytest.mark.parametrize(
    "name", ["ViT-B-16-SigLIP", "ViT-L-16-SigLIP2-256", "ViT-SO400M-14-SigLIP-384", "ViT-gopt-16-SigLIP2-256"]
)
def test_published_siglip_sizes_have_timms_names(name):
    """The config made from a named architecture describes that architecture."""
    import clip_models

    spec = clip_models.get_model_spec(name)
    with meta_device():
        model = build_model(spec)
    again = spec_from_huggingface(to_huggingface(model)[0], name="x")
    from clip_models.weights.convert.description import network_difference

    assert network_difference(again, spec) == ""
    assert "depth" not in again.vision.model_kwargs


def test_a_folder_for_transformers(tmp_path):
    spec = replace(
        SPEC, quick_gelu=True, preprocess=replace(SPEC.preprocess, resize_mode="squash", mean=(0.1, 0.2, 0.3))
    )
    model = randomise(build_model(spec))
    save_huggingface(tmp_path / "out", model)
    reference = transformers.AutoModel.from_pretrained(tmp_path / "out").eval()
    assert type(reference).__name__ == "CLIPModel"
    assert_same_outputs(model, reference, 100)
    processor = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())
    assert processor["size"] == {"height": 32, "width": 32}
    assert processor["image_mean"] == [0.1, 0.2, 0.3]
    described = describe_source(tmp_path / "out")
    assert described.preprocess == spec.preprocess
    assert described.quick_gelu
    loaded = load_pretrained(described, tmp_path / "out")
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_transformers_own_folder_is_described(tmp_path):
    reference = randomise(theirs(SIGLIP))
    reference.save_pretrained(tmp_path, max_shard_size="100KB")
    processor = {"size": {"height": 32, "width": 32}, "resample": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    spec = describe_source(tmp_path)
    assert (tmp_path / "model.safetensors.index.json").is_file()
    assert (spec.preprocess.interpolation, spec.preprocess.resize_mode) == ("bilinear", "squash")
    assert_same_outputs(load_pretrained(spec, tmp_path), reference, 119)


def test_transformers_siglip_in_a_spec_with_the_exact_gelu(tmp_path):
    """OpenCLIP's SigLIP specs say GELU and transformers its tanh form; the weights were trained with the latter."""
    reference = randomise(theirs(SIGLIP))
    reference.save_pretrained(tmp_path)
    described = describe_source(tmp_path)
    kwargs = {key: value for key, value in described.vision.model_kwargs.items() if key != "act_layer"}
    asked = replace(
        described,
        name="asked",
        vision=replace(described.vision, model_kwargs=kwargs),
        text=replace(described.text, gelu_tanh=False),
    )
    model = load_pretrained(asked, tmp_path)
    assert model.spec == replace(described, name="asked")
    assert_same_outputs(model, reference, 119)


REFUSED = {
    "a logit_bias": replace(SPEC, init_logit_bias=-10.0),
    "options of its image tower": replace(SPEC, vision=replace(SPEC.vision, pool_type="avg")),
    "options of its text tower": replace(SPEC, text=replace(TEXT, no_causal_mask=True)),
    "images of 32x16": replace(
        SPEC, vision=replace(SPEC.vision, image_size=(32, 16)), preprocess=PreprocessConfig(size=(32, 16))
    ),
    "another activation in each tower": replace(SPEC, text=replace(TEXT, gelu_tanh=True)),
}


@pytest.mark.parametrize(("message", "spec"), REFUSED.items(), ids=REFUSED)
def test_what_transformers_has_no_class_for(message, spec, tmp_path):
    with pytest.raises(ClipModelsError, match=f"'tiny' has {message}, which transformers' CLIPModel does not have"):
        save_huggingface(tmp_path / "out", build_model(spec))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "blip"}, "model_type 'blip', which is not converted; choose one of clip, metaclip_2, siglip"),
        ({"model_type": "siglip2"}, "Siglip2Model takes images of variable resolution"),
        ({"model_type": "clip", "text_config": {"hidden_act": "relu"}}, "hidden_act 'quick_gelu' for images and"),
        ({"model_type": "clip", "text_config": {"hidden_size": "a"}}, "text_config.hidden_size = 'a'"),
        ({"model_type": "siglip", "text_config": {"hidden_size": 96}}, "both must have the same width"),
    ],
)
def test_configs_that_are_refused(config, message):
    with pytest.raises(ClipModelsError, match=message):
        spec_from_huggingface(config)
