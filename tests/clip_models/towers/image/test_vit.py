from dataclasses import replace

import pytest
import torch

from clip_models import ClipModelsError, ViTConfig
from clip_models.towers.image.vit import VisionTransformer

CONFIG = ViTConfig(image_size=48, patch_size=16, width=64, layers=2, head_width=32)


def build(seed=0, **options):
    torch.manual_seed(seed)
    return VisionTransformer(replace(CONFIG, **options), embed_dim=32)


@pytest.mark.parametrize("size", [48, (40, 68)])
def test_patch_product_is_the_convolution(size):
    tower = build(image_size=size)
    image = torch.randn(2, 3, *tower.image_size)
    expected = tower.conv1(image).flatten(2).transpose(1, 2)
    torch.testing.assert_close(tower.embed_patches(image) @ tower.conv1.weight.flatten(1).T, expected)


def test_tokens_on_request_leave_the_features_as_they_are():
    plain, tower = build(), build(output_tokens=True)
    image = torch.randn(2, 3, 48, 48)
    features, tokens = tower(image)
    torch.testing.assert_close(features, plain(image), atol=1e-5, rtol=1e-5)
    assert tokens.shape == (2, 9, 64)


def test_patch_dropout_is_drawn_anew_and_only_in_training():
    tower = build(patch_dropout=0.75, image_size=96)
    image = torch.randn(2, 3, 96, 96)
    seen = []
    tower.transformer.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
    first, second = tower(image), tower(image)
    assert not torch.allclose(first, second)
    tower.eval()
    torch.testing.assert_close(tower(image), tower(image))
    assert seen == [10, 10, 37, 37]  # the class token and a quarter of 36 patches


def test_a_dropped_patch_does_not_matter_and_takes_no_gradient():
    tower = build(patch_dropout=0.5)
    image = torch.randn(1, 3, 48, 48, requires_grad=True)
    tower(image).sum().backward()
    per_patch = image.grad[0].unflatten(1, (3, 16)).unflatten(3, (3, 16)).abs().sum(dim=(0, 2, 4))
    assert (per_patch > 0).sum() == 4  # int(9 · 0.5)


def test_intermediates_ignore_patch_dropout_and_keep_the_grid():
    tower = build(patch_dropout=0.5, image_size=(32, 80))
    output = tower.forward_intermediates(torch.randn(2, 3, 32, 80), indices=1)
    assert [tuple(part.shape) for part in output["image_intermediates"]] == [(2, 64, 2, 5)]


def test_stopping_early_spares_blocks_only_where_no_features_are_wanted():
    tower, image = build(layers=3), torch.randn(2, 3, 48, 48)
    runs = []
    for block in tower.blocks():
        block.register_forward_hook(lambda *_: runs.append(1))
    tower.forward_intermediates(image, indices=[0], stop_early=True, intermediates_only=True)
    assert len(runs) == 1
    output = tower.forward_intermediates(image, indices=[0], stop_early=True)
    assert len(runs) == 4
    torch.testing.assert_close(output["image_features"], tower(image), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "options",
    [{}, {"no_ln_pre": True, "ls_init_value": 0.1}, {"attentional_pool": True, "pos_embed_type": "sin_cos_2d"}],
)
def test_layer_groups_name_every_parameter_once(options):
    tower = build(**options)
    groups = tower.layer_groups()
    assert sorted(name for group in groups for name in group) == sorted(name for name, _ in tower.named_parameters())
    assert len(groups) == CONFIG.layers + 2
    assert groups[-1] == ["proj"]
    assert len(tower.blocks()) == CONFIG.layers


def test_fixed_positions_stay_fixed_when_everything_is_unlocked():
    tower = build(pos_embed_type="sin_cos_2d")
    tower.lock(unlocked_groups=4)
    assert [name for name, p in tower.named_parameters() if not p.requires_grad] == ["positional_embedding"]


def test_bf16_weights_give_nearly_the_same():
    image = torch.randn(4, 3, 48, 48)
    for options in ({}, {"attentional_pool": True}, {"patch_dropout": 0.5, "pool_type": "avg", "ls_init_value": 1.0}):
        tower = build(**options).eval()
        exact = tower(image)
        low = tower.to(torch.bfloat16)(image)
        assert low.dtype == torch.bfloat16
        assert torch.cosine_similarity(low.float(), exact).min() > 0.999


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(2, 3, 32, 32), "takes [batch, 3, 48, 48], not [2, 3, 32, 32]"),
        (torch.zeros(3, 48, 48), "not [3, 48, 48]"),
        (torch.zeros(2, 1, 48, 48), "not [2, 1, 48, 48]"),
        (torch.zeros(2, 3, 48, 48, dtype=torch.uint8), "normalised floats, not torch.uint8"),
    ],
)
def test_wrong_images_are_refused(image, message):
    with pytest.raises(ClipModelsError) as caught:
        build()(image)
    assert message in str(caught.value)


def test_intermediates_that_cannot_be_are_refused():
    image = torch.zeros(1, 3, 48, 48)
    with pytest.raises(ClipModelsError, match="block 2 of a tower of 2"):
        build().forward_intermediates(image, indices=[2])
    with pytest.raises(ClipModelsError, match="NCHW or NLC"):
        build().forward_intermediates(image, output_fmt="NHWC")
    with pytest.raises(ClipModelsError, match="cannot normalize"):
        build(attentional_pool=True).forward_intermediates(image, normalize_intermediates=True)
