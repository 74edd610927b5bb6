import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from clip_models import ClipModelsError, PreprocessConfig, preprocess_eval, preprocess_train

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
    picture = Image.new("RGB", (90, 30), "green")
    picture.paste(Image.new("RGB", (30, 30), "red"), (30, 0))
    result = preprocess_eval(PreprocessConfig(size=(30, 30), **PLAIN))(picture)
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
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    results = [
        preprocess_eval(PreprocessConfig(size=(16, 16), interpolation=i))(picture) for i in ("bicubic", "bilinear")
    ]
    assert (results[0] - results[1]).abs().max() > 0.05


@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
def test_a_line_of_pixels_is_a_picture(resize_mode):
    transform = preprocess_eval(PreprocessConfig(size=(16, 16), resize_mode=resize_mode))
    for size in ((1, 1), (2000, 1), (1, 2000)):
        assert transform(Image.new("RGB", size, "red")).shape == (3, 16, 16)


def test_training_crops_vary_within_the_scale():
    # Left to right the picture goes from 0 to 1, so that the ends of a row tell where the crop lay.
    ramp = np.repeat(np.linspace(0, 255, 400).astype(np.uint8)[None, :, None], 400, axis=0).repeat(3, axis=2)
    transform = preprocess_train(PreprocessConfig(size=(32, 32), **PLAIN), scale=(0.25, 0.25), ratio=(1.0, 1.0))
    torch.manual_seed(0)
    results = [transform(Image.fromarray(ramp)) for _ in range(30)]
    widths = torch.stack([result[0, 16, -1] - result[0, 16, 0] for result in results])
    starts = torch.stack([result[0, 16, 0] for result in results])
    assert ((widths > 0.45) & (widths < 0.52)).all()  # half the width is a quarter of the area
    assert starts.max() - starts.min() > 0.3


def test_mirroring_is_as_frequent_as_asked():
    picture = make_halves(32, 32)
    torch.manual_seed(0)
    for probability, low, high in ((0.0, 0, 0), (0.5, 25, 75), (1.0, 100, 100)):
        transform = preprocess_train(PreprocessConfig(size=(32, 32), **PLAIN), scale=(1.0, 1.0), hflip=probability)
        mirrored = sum(transform(picture)[2, 0, 0].item() == 1 for _ in range(100))
        assert low <= mirrored <= high


def test_extreme_pictures_fall_back_to_the_centre():
    picture = Image.new("RGB", (1000, 10), "green")
    picture.paste(Image.new("RGB", (40, 10), "red"), (480, 0))
    result = preprocess_train(PreprocessConfig(size=(16, 16), **PLAIN))(picture)
    assert (result[0] == 1).all()


def test_transforms_pickle():
    picture = make_halves(40, 30)
    transform = preprocess_eval(PreprocessConfig(size=(16, 16)))
    assert (pickle.loads(pickle.dumps(transform))(picture) == transform(picture)).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": (0.0, 1.0)}, "scale (0.0, 1.0)"),
        ({"scale": (0.9, 0.5)}, "scale (0.9, 0.5)"),
        ({"scale": (0.5, 1.5)}, "scale (0.5, 1.5)"),
        ({"ratio": (-1.0, 1.0)}, "ratio (-1.0, 1.0)"),
        ({"hflip": 1.5}, "hflip 1.5"),
    ],
)
def test_impossible_augmentation_is_refused(options, message):
    with pytest.raises(ClipModelsError) as caught:
        preprocess_train(PreprocessConfig(), **options)
    assert message in str(caught.value)


@pytest.mark.parametrize("build", [preprocess_eval, preprocess_train])
def test_what_is_no_picture_is_refused(build):
    with pytest.raises(ClipModelsError, match="takes a Pillow image, not ndarray"):
        build(PreprocessConfig())(np.zeros((8, 8, 3), dtype=np.uint8))
