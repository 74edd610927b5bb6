from dataclasses import replace

import pytest
import torch

import clip_models
from clip_models import ClipModelsError
from clip_models.towers import Block


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


def test_patch_product_is_the_convolution(tiny, batch):
    expected = tiny.visual.conv1(batch[0]).flatten(2).transpose(1, 2)
    torch.testing.assert_close(tiny.visual.embed_patches(batch[0]), expected)


@pytest.mark.parametrize("causal", [False, True])
def test_pooled_block_gives_the_row_of_the_whole_block(causal):
    torch.manual_seed(0)
    block = Block(width=64, heads=4, mlp_ratio=4.0, quick_gelu=False, causal=causal)
    x, rows = torch.randn(3, 9, 64), torch.tensor([0, 8, 4])
    torch.testing.assert_close(block(x, rows), block(x)[torch.arange(3), rows])


def test_what_follows_the_end_token_changes_nothing(tiny, batch):
    text = batch[1][:3]
    with torch.no_grad():
        whole = tiny.encode_text(text)
        cut = tiny.encode_text(text[:, : int(text.argmax(dim=-1).max()) + 1])
        disturbed = text.clone()
        disturbed[:, -1] = 7
        torch.testing.assert_close(cut, whole, atol=1e-5, rtol=0)
        torch.testing.assert_close(tiny.encode_text(disturbed), whole, atol=1e-5, rtol=0)
        disturbed[:, 1] = 7
        assert not torch.allclose(tiny.encode_text(disturbed), whole, atol=1e-2)


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


def test_compiles_without_graph_breaks(tiny, batch):
    compiled = torch.compile(tiny, backend="eager", fullgraph=True)
    with torch.no_grad():
        for mine, expected in zip(compiled(*batch), tiny(*batch), strict=True):
            torch.testing.assert_close(mine, expected)


def test_state_dict_has_no_buffers(tiny):
    assert list(tiny.buffers()) == []


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(2, 3, 32, 32), "takes [batch, 3, 24, 24], not [2, 3, 32, 32]"),
        (torch.zeros(3, 24, 24), "not [3, 24, 24]"),
        (torch.zeros(2, 1, 24, 24), "not [2, 1, 24, 24]"),
        (torch.zeros(2, 3, 24, 24, dtype=torch.uint8), "normalised floats, not torch.uint8"),
    ],
)
def test_wrong_images_are_refused(tiny, image, message):
    with pytest.raises(ClipModelsError) as caught:
        tiny.encode_image(image)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (torch.zeros(2, 33, dtype=torch.int64), "[batch, up to 32] token ids, not [2, 33]"),
        (torch.zeros(32, dtype=torch.int64), "not [32]"),
        (torch.zeros(2, 0, dtype=torch.int64), "not [2, 0]"),
        (torch.zeros(2, 32), "int64, not torch.float32"),
    ],
)
def test_wrong_token_ids_are_refused(tiny, text, message):
    with pytest.raises(ClipModelsError) as caught:
        tiny.encode_text(text)
    assert message in str(caught.value)
