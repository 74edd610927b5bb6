"""Towers out of timm against OpenCLIP's, with few and narrow blocks: every family of trunk and every kind of head."""

import pytest
import torch

from clip_models.specs import TimmConfig
from clip_models.towers.image.timm import TimmTower

timm = pytest.importorskip("timm")
pytest.importorskip("open_clip")
from open_clip.timm_model import TimmModel  # noqa: E402

pytestmark = pytest.mark.parity

VIT = {"depth": 2, "embed_dim": 128, "num_heads": 2}
CONVNEXT = {"depths": (1, 1, 2, 1), "dims": (16, 24, 32, 128)}
# name, what makes it small, side of the image, pool, proj, embed_dim
CASES = {
    "convnext": ("convnext_base", CONVNEXT, 64, "", "linear", 24),
    "convnext mlp": ("convnext_large", CONVNEXT, 64, "", "mlp", 24),
    "convnext abs_attn": ("convnext_base", CONVNEXT, 224, "abs_attn", "", 64),
    "convnext rot_attn": ("convnext_base", CONVNEXT, 96, "rot_attn", "linear", 64),
    "eva": ("eva_giant_patch14_224", VIT, 56, "token", "", 24),
    "eva02": ("eva02_base_patch16_clip_224", VIT, 64, "token", "", 24),
    "pe-core": ("vit_pe_core_tiny_patch16_384", VIT, 64, "map", "", 24),
    "pe-core without class token": ("vit_pe_core_gigantic_patch14_448", VIT, 56, "map", "", 24),
    "siglip": ("vit_base_patch16_siglip_224", VIT, 64, "map", "none", 128),
    "gap": ("vit_medium_patch16_gap_256", VIT, 64, "", "linear", 24),
    "relpos": ("vit_relpos_medium_patch16_cls_224", VIT, 64, "", "linear", 24),
    "vitamin": ("vitamin_small_224", {"depth": 2}, 64, "", "linear", 24),
    "mobileclip s": ("fastvit_mci0", {"layers": (1,) * 4, "embed_dims": (32, 64, 128, 256)}, 64, "avg", "", 24),
    "mobileclip2 s": ("fastvit_mci3", {"layers": (1,) * 5, "embed_dims": (32, 64, 128, 256, 256)}, 128, "avg", "", 24),
    "mobileclip b": ("vit_base_mci_224", {"depth": 2}, 64, "token", "", 24),
    "swin": (
        "swin_base_patch4_window7_224",
        {"depths": (1, 2, 1, 1), "embed_dim": 16, "num_heads": (1, 1, 2, 2)},
        224,
        "",
        "linear",
        24,
    ),
}


@pytest.fixture(params=CASES, ids=lambda case: case.replace(" ", "-"))
def pair(request, monkeypatch):
    """(ours, OpenCLIP's, a batch), with weights of their own."""
    name, reduced, size, pool, proj, embed_dim = CASES[request.param]
    fixed = timm.get_pretrained_cfg(name).fixed_input_size
    smaller = {**reduced, "img_size": size} if fixed else reduced
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda *args, **kwargs: create(*args, **{**kwargs, **smaller}))
    torch.manual_seed(0)
    ours = TimmTower(
        TimmConfig(model_name=name, image_size=size, pool=pool, proj=proj, drop_path=0.1, drop=0.2), embed_dim
    )
    reference = TimmModel(name, embed_dim, size, pool, proj, drop=0.2, drop_path=0.1)
    return ours, reference, torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))


def shapes(tower):
    return {name: tuple(tensor.shape) for name, tensor in tower.state_dict().items()}


def test_tensors_features_and_gradients(pair):
    ours, reference, image = pair
    assert shapes(ours) == shapes(reference)
    assert [name for name, _ in ours.named_parameters()] == [name for name, _ in reference.named_parameters()]
    for source, target in ((ours, reference), (reference, ours)):
        for tensor in source.parameters():  # scales start so small that they hide the blocks, and weights at zero
            torch.nn.init.normal_(tensor, std=0.1 if tensor.ndim < 2 else min(1.0, (2 / tensor[0].numel()) ** 0.5))
        target.load_state_dict(source.state_dict(), strict=True)
        for train in (False, True):
            features = []
            for tower in (ours.train(train), reference.train(train)):
                tower.zero_grad()
                torch.manual_seed(5)  # stochastic depth and dropout draw the same
                features.append(tower(image))
                (features[-1] * torch.linspace(-1, 1, features[-1].shape[-1])).sum().backward()
            assert features[0].shape == (3, features[0].shape[-1])
            assert features[1].abs().max() > 1e-3
            assert (features[0] - features[1]).abs().max() < 1e-5
            for name, parameter in ours.named_parameters():
                expected = reference.get_parameter(name).grad
                if expected is not None:
                    assert (parameter.grad - expected).norm() <= 1e-4 * expected.norm() + 1e-7, name


def test_intermediates(pair):
    ours, reference, image = pair
    reference.load_state_dict(ours.state_dict())
    with torch.no_grad():
        mine = ours.eval().forward_intermediates(image, indices=2)
        theirs = reference.eval().forward_intermediates(image, indices=2)
        for got, expected in zip(mine["image_intermediates"], theirs["image_intermediates"], strict=True):
            assert torch.equal(got, expected)
        torch.testing.assert_close(mine["image_features"], ours(image), rtol=1e-4, atol=1e-5)
