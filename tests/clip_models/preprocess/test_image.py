import json
import pickle
import random

import numpy as np
import pytest
import torch
from PIL import Image

import clip_models
from clip_models import ClipModelsError, ImageError, PreprocessConfig, preprocess_eval, preprocess_train
from clip_models.preprocess.image import image_transform
from clip_models.specs.augmentation import AugmentationConfig

PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def make_halves(width, height):
    """Left half red, right half blue."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[:, : width // 2, 0] = 255
    pixels[:, width // 2 :, 2] = 255
    return Image.fromarray(pixels)


def test_normalisation():
    config = PreprocessConfig(size=(4, 4), mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 2.0))
    result = preprocess_eval(config)(Image.new("RGB", (8, 8), (255, 0, 51)))
    assert result.dtype == torch.float32
    expected = torch.tensor([1.0, -1.0, 0.1]).view(3, 1, 1).expand(3, 4, 4)
    torch.testing.assert_close(result, expected)


def test_shortest_crops_the_centre():
    original = Image.new("RGB", (90, 30), "green")
    original.paste(Image.new("RGB", (30, 30), "red"), (30, 0))
    result = preprocess_eval(PreprocessConfig(size=(30, 30), **PLAIN))(original)
    assert (result[0] == 1).all()
    assert (result[1:] == 0).all()


def test_longest_pads_with_the_fill_color():
    config = PreprocessConfig(size=(20, 20), resize_mode="longest", fill_color=51, **PLAIN)
    result = preprocess_eval(config)(Image.new("RGB", (40, 20), "white"))
    torch.testing.assert_close(result[:, :5], torch.full((3, 5, 20), 0.2))
    assert (result[:, 5:15] == 1).all()
    torch.testing.assert_close(result[:, 15:], torch.full((3, 5, 20), 0.2))


def test_squash_keeps_everything():
    result = preprocess_eval(PreprocessConfig(size=(8, 8), resize_mode="squash", **PLAIN))(make_halves(80, 8))
    assert (result[0, :, :3] == 1).all()
    assert (result[2, :, 5:] == 1).all()


def test_interpolations_differ():
    original = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    results = [
        preprocess_eval(PreprocessConfig(size=(16, 16), interpolation=i))(original) for i in ("bicubic", "bilinear")
    ]
    assert (results[0] - results[1]).abs().max() > 0.05


@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
def test_a_line_of_pixels_is_an_image(resize_mode):
    transform = preprocess_eval(PreprocessConfig(size=(16, 16), resize_mode=resize_mode))
    for size in ((1, 1), (2000, 1), (1, 2000)):
        assert transform(Image.new("RGB", size, "red")).shape == (3, 16, 16)


def test_training_crops_vary_within_the_scale():
    # Left to right the image goes from 0 to 1, so that the ends of a row tell where the crop lay.
    ramp = np.repeat(np.linspace(0, 255, 400).astype(np.uint8)[None, :, None], 400, axis=0).repeat(3, axis=2)
    transform = preprocess_train(
        PreprocessConfig(size=(32, 32), **PLAIN), AugmentationConfig(scale=(0.25, 0.25), ratio=(1.0, 1.0))
    )
    torch.manual_seed(0)
    results = [transform(Image.fromarray(ramp)) for _ in range(30)]
    widths = torch.stack([result[0, 16, -1] - result[0, 16, 0] for result in results])
    starts = torch.stack([result[0, 16, 0] for result in results])
    assert ((widths > 0.45) & (widths < 0.52)).all()  # half the width is a quarter of the area
    assert starts.max() - starts.min() > 0.3


def test_mirroring_is_as_frequent_as_asked():
    original = make_halves(32, 32)
    torch.manual_seed(0)
    for probability, low, high in ((0.0, 0, 0), (0.5, 25, 75), (1.0, 100, 100)):
        transform = preprocess_train(PreprocessConfig(size=(32, 32), **PLAIN), {"scale": [1, 1], "hflip": probability})
        mirrored = sum(transform(original)[2, 0, 0].item() == 1 for _ in range(100))
        assert low <= mirrored <= high


def test_extreme_images_fall_back_to_the_centre():
    original = Image.new("RGB", (1000, 10), "green")
    original.paste(Image.new("RGB", (40, 10), "red"), (480, 0))
    result = preprocess_train(PreprocessConfig(size=(16, 16), **PLAIN))(original)
    assert (result[0] == 1).all()


def test_transforms_pickle():
    original = make_halves(40, 30)
    for build in (preprocess_eval, preprocess_train):
        transform = pickle.loads(pickle.dumps(build(PreprocessConfig(size=(16, 16)))))
        torch.manual_seed(0)
        first = transform(original)
        torch.manual_seed(0)
        assert (build(PreprocessConfig(size=(16, 16)))(original) == first).all()


def test_grey_and_erased_are_as_frequent_as_asked():
    original, random_state = make_halves(32, 32), random.getstate()
    random.seed(0)
    try:
        for probability, low, high in ((0.0, 0, 0), (0.5, 25, 75), (1.0, 100, 100)):
            grey = preprocess_train(PreprocessConfig(size=(8, 8), **PLAIN), {"gray_scale_prob": probability})
            results = [grey(original) for _ in range(100)]
            assert low <= sum(torch.equal(result[0], result[2]) for result in results) <= high
            erase = preprocess_train(PreprocessConfig(size=(8, 8), **PLAIN), {"re_prob": probability, "re_count": 2})
            results = [erase(original) for _ in range(100)]
            assert low <= sum((result < 0).any().item() for result in results) <= high  # noise, where pixels are >= 0
    finally:
        random.setstate(random_state)


def test_augmentation_is_plain_data():
    config = AugmentationConfig(scale=(0.4, 1.0), color_jitter=(0.3, 0.3, 0.3, 0.1), color_jitter_prob=0.8)
    assert AugmentationConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert AugmentationConfig.from_dict({}) == AugmentationConfig()
    assert AugmentationConfig(color_jitter=0.4).jitter == (0.4, 0.4, 0.4, 0.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": (0.0, 1.0)}, "scale (0.0, 1.0)"),
        ({"scale": (0.9, 0.5)}, "scale (0.9, 0.5)"),
        ({"scale": (0.5, 1.5)}, "scale (0.5, 1.5)"),
        ({"ratio": (-1.0, 1.0)}, "ratio (-1.0, 1.0)"),
        ({"hflip": 1.5}, "hflip 1.5"),
        ({"gray_scale_prob": -0.1}, "gray_scale_prob -0.1"),
        ({"re_count": 0}, "re_count 0"),
        ({"color_jitter": (0.1, 0.1)}, "color_jitter (0.1, 0.1)"),
        ({"color_jitter": (0.1, 0.1, 0.1, 0.7)}, "the fourth (hue) up to 0.5"),
        ({"color_jitter": "strong"}, "color_jitter = 'strong' must be a finite number or a list"),
        ({"color_jitter_prob": 0.5}, "color_jitter_prob has nothing to apply"),
        ({"use_timm": True, "color_jitter": 0.1, "color_jitter_prob": 0.5}, "do not go with use_timm"),
        ({"use_timm": True, "gray_scale_prob": 0.5}, "do not go with use_timm"),
        ({"interpolation": "nearest"}, "interpolation = 'nearest'"),
        ({"colour_jitter": 0.5}, "unknown key colour_jitter; did you mean color_jitter?"),
    ],
)
def test_impossible_augmentation_is_refused(options, message):
    with pytest.raises(ClipModelsError) as caught:
        preprocess_train(PreprocessConfig(), options)
    assert message in str(caught.value)


def test_an_impossible_size_is_refused():
    with pytest.raises(ClipModelsError, match=r"image_size \(1, 2, 3\) must be a side"):
        image_transform((1, 2, 3), is_train=False)


def test_a_line_of_pixels_is_not_resized_whole(monkeypatch):
    """It would be 224 × 4,480,000 pixels: 3 GB."""
    sizes, resize = [], Image.Image.resize
    monkeypatch.setattr(
        Image.Image, "resize", lambda self, size, *rest: (sizes.append(size), resize(self, size, *rest))[1]
    )
    result = preprocess_eval(PreprocessConfig())(Image.new("RGB", (20_000, 1), "red"))
    assert sizes == [(224, 224)]
    assert result.shape == (3, 224, 224)
    assert result[0].min() > 1.9


@pytest.mark.parametrize("build", [preprocess_eval, preprocess_train])
def test_other_values_than_images_are_refused(build):
    with pytest.raises(ClipModelsError, match="takes a Pillow image, not ndarray"):
        build(PreprocessConfig())(np.zeros((8, 8, 3), dtype=np.uint8))


def odd_images():
    """Images that OpenCLIP takes for something else, and what is seen on them: 16 bits, alpha, a quarter turn."""
    deep = Image.fromarray(np.full((8, 8), 0x80FF, np.uint16))
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    turned = make_halves(8, 8)
    turned.getexif()[0x0112] = 3
    return [(deep, [128] * 3), (clear, [255] * 3), (turned, np.asarray(make_halves(8, 8))[0, -1].tolist())]


@pytest.mark.parametrize("build", [preprocess_eval, preprocess_train])
def test_images_that_are_not_plain_become_upright_rgb_on_white(build):
    options = ({"scale": [1, 1], "ratio": [1, 1]},) if build is preprocess_train else ()
    for image, corner in odd_images():
        before = image.tobytes()
        found, theirs = (
            build(PreprocessConfig(size=(8, 8), **PLAIN), *options, image_mode=mode)(image)[:, 0, 0] * 255
            for mode in ("standard", "openclip")
        )
        assert found.round().int().tolist() == corner
        assert theirs.round().int().tolist() != corner
        assert image.tobytes() == before


def test_the_image_mode_of_a_model_is_that_of_its_transforms():
    image = odd_images()[0][0]
    standard, openclip = (
        clip_models.create_model_and_transforms("ViT-Ti-4-24", seed=0, **mode)[2].pixels(image)
        for mode in ({}, {"image_mode": "openclip"})
    )
    assert (standard.max(), openclip.max()) == (128, 255)
    with pytest.raises(ClipModelsError, match="image_mode 'clip' is unknown; choose from standard, openclip"):
        preprocess_eval(PreprocessConfig(), image_mode="clip")
    with pytest.raises(ImageError, match="values from -1 to -1"):
        preprocess_eval(PreprocessConfig())(Image.new("F", (4, 4), -1))
