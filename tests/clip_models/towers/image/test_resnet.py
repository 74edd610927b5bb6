"""The modified ResNet: sizes, recomputation, locking, intermediates."""

import itertools

import pytest
import torch

from clip_models.errors import ClipModelsError
from clip_models.specs import ResNetConfig
from clip_models.towers.image.resnet import ModifiedResNet

CONFIG = ResNetConfig(image_size=64, layers=(1, 2, 1, 1), width=8, head_width=32)


def build(config=CONFIG, seed=0):
    torch.manual_seed(seed)
    tower = ModifiedResNet(config, 16)
    with torch.no_grad():
        for name, parameter in tower.named_parameters():
            if name.endswith("bn3.weight"):  # zero at first, which would hide the blocks
                parameter.fill_(0.5)
    return tower


@pytest.fixture(scope="module")
def image():
    return torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def test_blocks_start_as_the_identity():
    for block in ModifiedResNet(CONFIG, 16).blocks():
        assert not block.bn3.weight.any()


@pytest.mark.parametrize("size", [(64, 64), (96, 64), (65, 95), (32, 32)])
def test_images_of_any_size_are_taken(size):
    tower = build().eval()
    assert tower(torch.randn(2, 3, *size)).shape == (2, 16)


def test_a_spec_may_be_a_rectangle():
    tower = build(ResNetConfig(image_size=(96, 64), layers=(1, 1, 1, 1), width=8, head_width=32)).eval()
    assert tower.attnpool.positional_embedding.shape[0] == 3 * 2 + 1
    assert tower(torch.randn(1, 3, 96, 64)).shape == (1, 16)


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [False, True])
def test_recomputation_gives_the_same_gradients_and_counts_statistics_once(image, compiled):
    results = []
    for enable in (False, True):
        tower = build().train()
        tower.set_grad_checkpointing(enable)
        run = torch.compile(tower, backend="aot_eager", fullgraph=True) if compiled and enable else tower
        run(image).square().sum().backward()
        results.append(({n: p.grad for n, p in tower.named_parameters()}, dict(tower.named_buffers())))
    for plain, again in zip(*results, strict=True):
        for name in plain:
            torch.testing.assert_close(again[name], plain[name], rtol=1e-4, atol=1e-6, msg=name)
    assert all(t == 1 for name, t in results[1][1].items() if name.endswith("num_batches_tracked"))


def test_recomputation_keeps_less(image):
    kept = []
    for enable in (False, True):
        tower = build().train()
        tower.set_grad_checkpointing(enable)
        sizes = []

        def pack(tensor, sizes=sizes):
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            tower(image)
        kept.append(sum(sizes))
    assert kept[1] < 0.8 * kept[0]


def test_locking_by_groups(image):
    tower = build().train()
    groups = tower.layer_groups()
    assert len(groups) == 6
    assert sorted(itertools.chain(*groups)) == sorted(name for name, _ in tower.named_parameters())
    tower.lock(2)
    trained = [name for name, p in tower.named_parameters() if p.requires_grad]
    assert trained == groups[4] + groups[5]
    assert all(name.startswith(("layer4.", "attnpool.")) for name in trained)
    tower.lock()
    assert not any(p.requires_grad for p in tower.parameters())


def test_frozen_statistics_stay_and_the_others_go_on(image):
    tower = build()
    tower.lock(2, freeze_bn_stats=True)
    before = {name: t.clone() for name, t in tower.state_dict().items()}
    tower.train()
    tower(image)
    changed = {name for name, t in tower.state_dict().items() if not torch.equal(t, before[name])}
    assert changed
    assert all(name.startswith("layer4.") for name in changed)
    assert set(before) == set(build().state_dict())
    tower.lock(6, freeze_bn_stats=True)  # progressive unlocking lets them go on again
    tower.train()
    tower(image)
    assert not torch.equal(tower.state_dict()["bn1.running_mean"], before["bn1.running_mean"])


def test_intermediates(image):
    tower = build().eval()
    everything = tower.forward_intermediates(image)
    sizes = [tuple(t.shape[1:]) for t in everything["image_intermediates"]]
    assert sizes == [(8, 16, 16), (32, 16, 16), (64, 8, 8), (128, 4, 4), (256, 2, 2)]
    torch.testing.assert_close(everything["image_features"], tower(image))
    some = tower.forward_intermediates(image, [1, -2])
    for got, index in zip(some["image_intermediates"], (1, 3), strict=True):
        torch.testing.assert_close(got, everything["image_intermediates"][index])
    torch.testing.assert_close(some["image_features"], everything["image_features"])
    # Asked for features too, the tower runs to its end even with stop_early.
    early = tower.forward_intermediates(image, [1], stop_early=True)
    torch.testing.assert_close(early["image_features"], everything["image_features"])
    tower.layer3 = tower.layer4 = None
    only = tower.forward_intermediates(image, [1, 2], stop_early=True, intermediates_only=True)
    assert set(only) == {"image_intermediates"}
    assert len(only["image_intermediates"]) == 2
    for wrong in ({"indices": 6}, {"indices": [5]}, {"output_fmt": "NLC"}):
        with pytest.raises(ClipModelsError):
            tower.forward_intermediates(image, **wrong)


@pytest.mark.slow
@pytest.mark.parametrize("train", [False, True])
def test_compiles_into_one_graph(image, train):
    tower = build().train(train)
    expected = build().train(train)(image)
    torch.testing.assert_close(torch.compile(tower, backend="eager", fullgraph=True)(image), expected)


def test_wrong_images_are_named():
    tower = build().eval()
    with pytest.raises(ClipModelsError, match=r"\[1, 1, 64, 64\]"):
        tower(torch.zeros(1, 1, 64, 64))
    with pytest.raises(ClipModelsError, match="uint8"):
        tower(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    with pytest.raises(ClipModelsError, match="stride"):
        tower(torch.zeros(1, 3, 64, 31))
