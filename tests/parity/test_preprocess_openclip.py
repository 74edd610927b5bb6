"""Preprocessing against OpenCLIP's image_transform."""

import numpy as np
import pytest
import torch
from PIL import Image

from clip_models import PreprocessConfig, preprocess_eval, preprocess_train

open_clip = pytest.importorskip("open_clip")
pytestmark = pytest.mark.parity

MODES = ["RGB", "L", "LA", "P", "RGBA", "1", "CMYK"]
# (width, height): larger and smaller than the target, equal to it, and with odd remainders on both sides.
SIZES = [(97, 61), (61, 97), (64, 64), (20, 33), (65, 64), (300, 40)]


def make_picture(mode: str, width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(width * 1000 + height)
    coarse = rng.integers(0, 256, (height // 4 + 1, width // 4 + 1, 4), dtype=np.uint8)
    picture = Image.fromarray(coarse, "RGBA").resize((width, height), Image.Resampling.BICUBIC)
    if mode == "RGBA":
        return picture
    return picture.quantize(32) if mode == "P" else picture.convert("RGB" if mode == "CMYK" else mode).convert(mode)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("mode", MODES)
def test_eval_is_identical(mode, resize_mode, interpolation):
    fill = 77
    reference = open_clip.image_transform(
        64, is_train=False, resize_mode=resize_mode, interpolation=interpolation, fill_color=fill
    )
    config = PreprocessConfig(size=(64, 64), resize_mode=resize_mode, interpolation=interpolation, fill_color=fill)
    ours = preprocess_eval(config)
    for width, height in SIZES:
        picture = make_picture(mode, width, height)
        assert picture.mode == mode
        result = ours(picture)
        assert result.shape == (3, 64, 64)
        assert (result - reference(picture)).abs().max().item() == 0, (width, height)


@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
def test_eval_is_identical_for_a_target_that_is_not_square(resize_mode):
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    reference = open_clip.image_transform((48, 80), is_train=False, resize_mode=resize_mode, mean=mean, std=std)
    ours = preprocess_eval(PreprocessConfig(size=(48, 80), resize_mode=resize_mode, mean=mean, std=std))
    for width, height in SIZES:
        picture = make_picture("RGB", width, height)
        assert (ours(picture) - reference(picture)).abs().max().item() == 0, (width, height)


@pytest.mark.parametrize("scale", [(0.9, 1.0), (0.08, 1.0)])
@pytest.mark.parametrize("mode", ["RGB", "P", "RGBA"])
def test_training_crops_are_identical_for_a_seed(mode, scale):
    reference = open_clip.image_transform(64, is_train=True, aug_cfg={"scale": scale})
    ours = preprocess_train(PreprocessConfig(size=(64, 64)), scale=scale)
    for seed, (width, height) in enumerate([*SIZES, (400, 10), (10, 400)]):
        picture = make_picture(mode, width, height)
        torch.manual_seed(seed)
        expected = reference(picture)
        torch.manual_seed(seed)
        assert (ours(picture) - expected).abs().max().item() == 0, (width, height)
