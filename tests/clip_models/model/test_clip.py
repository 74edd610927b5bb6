from dataclasses import replace

import pytest
import torch

import clip_models
from clip_models import (
    ClipModelsError,
    CLIPTextConfig,
    ModelSpec,
    PreprocessConfig,
    TokenizerConfig,
    ViTConfig,
)


def test_shapes_and_scale(tiny, batch):
    image, text = batch
    with torch.no_grad():
        image_features, text_features, scale = tiny(image, text)
    assert image_features.shape == text_features.shape == (4, 128)
    torch.testing.assert_close(image_features.norm(dim=-1), torch.ones(4))
    torch.testing.assert_close(text_features.norm(dim=-1), torch.ones(4))
    assert scale.shape == ()
    assert scale.item() == pytest.approx(1 / 0.07)


def test_normalize_is_on_request(tiny, batch):
    image, text = batch
    with torch.no_grad():
        for encode, value in ((tiny.encode_image, image), (tiny.encode_text, text)):
            plain = encode(value)
            assert not torch.allclose(plain.norm(dim=-1), torch.ones(4), atol=0.05)
            torch.testing.assert_close(torch.nn.functional.normalize(plain, dim=-1), encode(value, normalize=True))


def test_the_activation_matters(tiny, batch):
    quick = clip_models.create_model(replace(tiny.spec, quick_gelu=True), seed=0)
    with torch.no_grad():
        difference = (quick.encode_image(batch[0]) - tiny.encode_image(batch[0])).abs().max().item()
    assert 1e-4 < difference < 1


def test_gradient_reaches_every_parameter(batch):
    model = clip_models.create_model("ViT-Ti-4-24", seed=0)
    image_features, text_features, scale = model(*batch)
    torch.nn.functional.cross_entropy(scale * image_features @ text_features.T, torch.arange(4)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_bf16_autocast_trains_close_to_fp32(batch):
    results = {}
    for enabled in (False, True):
        model = clip_models.create_model("ViT-Ti-4-24", seed=0)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            image_features, text_features, scale = model(*batch)
        logits = scale.float() * image_features.float() @ text_features.float().T
        torch.nn.functional.cross_entropy(logits, torch.arange(4)).backward()
        assert {parameter.grad.dtype for parameter in model.parameters()} == {torch.float32}
        results[enabled] = (image_features.float().detach(), model.visual.conv1.weight.grad)
    (exact, exact_grad), (low, low_grad) = results[False], results[True]
    assert 0 < (low - exact).abs().max().item() < 0.02
    assert torch.cosine_similarity(low_grad.flatten(), exact_grad.flatten(), dim=0) > 0.98


FAMILIES = {
    "vit": ({"patch_dropout": 0.5}, {}, {}),
    "clipa": (
        {"patch_dropout": 0.5, "no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True},
        {"no_causal_mask": True, "pool_type": "last"},
        {"quick_gelu": True},
    ),
    "worldwide": ({}, {"pool_type": "eos", "eos_id": 2}, {"init_logit_bias": -10.0}),
    "class-token": (
        {"attentional_pool": True, "attn_pooler_queries": 5, "output_tokens": True, "pos_embed_type": "sin_cos_2d"},
        {"embed_cls": True, "output_tokens": True},
        {"custom_text": True},
    ),
}


def draw_family(name, **root):
    """(model, image, text) of a dual encoder of two layers."""
    vision, text, more = FAMILIES[name]
    spec = ModelSpec(
        name=name,
        embed_dim=32,
        vision=ViTConfig(image_size=48, patch_size=16, width=64, layers=2, head_width=32, **vision),
        text=CLIPTextConfig(context_length=12, vocab_size=100, width=64, heads=2, layers=2, **text),
        preprocess=PreprocessConfig(size=(48, 48)),
        tokenizer=TokenizerConfig(kind="hf", name="any"),
        **{**more, **root},
    )
    torch.manual_seed(0)
    ids = torch.randint(3, 99, (3, 12))
    ids[:, 7] = 2
    return clip_models.CLIP(spec), torch.randn(3, 3, 48, 48), ids


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "checkpointing"), [("vit", True), ("clipa", False), ("worldwide", False), ("class-token", False)]
)
def test_training_compiles_without_graph_breaks(name, checkpointing):
    model, image, text = draw_family(name)
    model.set_grad_checkpointing(checkpointing)
    torch._dynamo.reset()
    graphs = []
    compiled = torch.compile(model, backend=lambda graph, _: graphs.append(graph) or graph)
    torch.manual_seed(3)
    outputs = compiled(image, text)
    sum(output.sum() for output in outputs).backward()
    assert len(graphs) == 1  # a break makes two
    torch.manual_seed(3)
    for mine, expected in zip(outputs, model(image, text), strict=True):
        torch.testing.assert_close(mine, expected)


@pytest.mark.parametrize("name", ["vit", "clipa", "worldwide"])
def test_the_two_layouts_compute_the_same(name):
    at_root, image, text = draw_family(name)
    apart = draw_family(name, custom_text=True)[0]
    own = ("visual.", "logit_")
    state = {key if key.startswith(own) else f"text.{key}": value for key, value in at_root.state_dict().items()}
    apart.load_state_dict(state, strict=True)
    for mine, expected in zip(apart.eval()(image, text), at_root.eval()(image, text), strict=True):
        assert torch.equal(mine, expected)
    assert len(apart.blocks()) == len(at_root.blocks()) == 4
    for model in (apart, at_root):
        groups = model.layer_groups()
        named = {key for tower in groups.values() for group in tower for key in group}
        assert named == {key for key, _ in model.named_parameters() if not key.startswith("logit_")}
        assert [len(tower) for tower in groups.values()] == [4, 4]
        assert model.no_weight_decay() < named
        model.lock_image_tower(unlocked_groups=1)
        model.lock_text_tower()
        trained = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
        assert {key for key in trained if not key.startswith("logit_")} == {"visual.proj"}


def test_one_input_is_enough_and_outputs_can_be_named():
    model, image, text = draw_family("worldwide")
    assert model.eval()(image)[1] is None
    assert model(text=text)[0] is None
    plain = model(image, text)
    model.output_dict = True
    named = model(image, text)
    assert list(named) == ["image_features", "text_features", "logit_scale", "logit_bias"]
    assert all(torch.equal(a, b) for a, b in zip(named.values(), plain, strict=True))
    image_logits, text_logits = model.get_logits(image, text)
    expected = named["logit_scale"] * named["image_features"] @ named["text_features"].T - 10
    torch.testing.assert_close(image_logits, expected)
    torch.testing.assert_close(text_logits, expected.T)


def test_initial_scale_and_bias_are_the_specs():
    model = draw_family("vit", init_logit_scale=2.5)[0]
    assert model.logit_scale.item() == 2.5
    assert model.logit_bias is None
    assert "logit_bias" not in model.state_dict()
    assert draw_family("worldwide")[0].logit_bias.shape == ()


def test_logits_without_both_inputs_are_refused():
    model, image, _ = draw_family("vit")
    with pytest.raises(ClipModelsError, match="needs an image and a text"):
        model.forward_intermediates(image, output_logits=True)


def test_state_dict_has_no_buffers():
    assert all(list(draw_family(name)[0].buffers()) == [] for name in FAMILIES)
