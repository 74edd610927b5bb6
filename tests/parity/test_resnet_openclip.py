"""The modified ResNet against OpenCLIP's."""

import pytest
import torch

from clip_models.specs import ResNetConfig
from clip_models.towers.image.resnet import ModifiedResNet

pytest.importorskip("open_clip")
from open_clip.modified_resnet import ModifiedResNet as Reference

pytestmark = pytest.mark.parity

CONFIG = ResNetConfig(image_size=128, layers=(2, 1, 2, 1), width=16, head_width=64)


def pair(seed=0):
    """(ours, OpenCLIP's) with the same random weights and statistics, none of them a constant."""
    torch.manual_seed(seed)
    ours = ModifiedResNet(CONFIG, 24)
    with torch.no_grad():
        for name, tensor in ours.state_dict().items():
            if (".bn" in f".{name}" or "downsample.1" in name) and tensor.is_floating_point():
                tensor.copy_(torch.rand_like(tensor) + 0.5 if name.endswith(("weight", "var")) else tensor + 0.1)
    reference = Reference(CONFIG.layers, 24, CONFIG.heads, 128, CONFIG.width)
    reference.load_state_dict(ours.state_dict(), strict=True)
    return ours, reference


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
def test_features_gradients_and_statistics(train):
    ours, reference = (tower.train(train) for tower in pair())
    image = torch.randn(4, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    mine, theirs = ours(image), reference(image)
    assert theirs.abs().max() > 0.05
    assert (mine - theirs).abs().max() < 1e-5
    for features in (mine, theirs):
        (features * torch.linspace(-1, 1, 24)).sum().backward()
    for name, parameter in ours.named_parameters():
        expected = reference.get_parameter(name).grad
        assert (parameter.grad - expected).norm() <= 1e-4 * expected.norm() + 1e-6, name
    for name, expected in reference.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], expected, rtol=1e-5, atol=1e-6, msg=name)


def test_a_state_dict_of_openclip_loads():
    torch.manual_seed(3)
    reference = Reference(CONFIG.layers, 24, CONFIG.heads, 128, CONFIG.width).eval()
    ours = ModifiedResNet(CONFIG, 24).eval()
    ours.load_state_dict(reference.state_dict(), strict=True)
    assert [name for name, _ in ours.named_parameters()] == [name for name, _ in reference.named_parameters()]
    image = torch.randn(1, 3, 128, 128)
    assert (ours(image) - reference(image)).abs().max() < 1e-5


def test_intermediates():
    ours, reference = (tower.eval() for tower in pair())
    image = torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    mine = ours.forward_intermediates(image, indices=3)
    theirs = reference.forward_intermediates(image, indices=3)
    for got, expected in zip(mine["image_intermediates"], theirs["image_intermediates"], strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mine["image_features"], theirs["image_features"], rtol=1e-4, atol=1e-5)


def test_initial_weights_follow_the_same_distributions():
    torch.manual_seed(0)
    reference = dict(Reference(CONFIG.layers, 24, CONFIG.heads, 128, CONFIG.width).named_parameters())
    for name, mine in ModifiedResNet(CONFIG, 24).named_parameters():
        theirs = reference[name]
        if theirs.std() == 0:
            assert torch.equal(mine, theirs), name
        else:
            assert mine.std().item() == pytest.approx(theirs.std().item(), rel=5 / theirs.numel() ** 0.5), name
