import dataclasses
import io
import re

import numpy as np
import pytest
from PIL import Image

from clip_core.config import ConfigError
from clip_data.stream import preprocess
from clip_data.stream.preprocess import Augment, CorruptSample, crop_box, parse_preprocess
from tests.support.datasets import jpeg
from tests.support.streams import make_image

MODES = {"RGB": "PNG", "L": "PNG", "P": "PNG", "RGBA": "PNG", "LA": "PNG", "CMYK": "JPEG"}


def encoded(image, kind="PNG"):
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def noise(width, height, mode="RGB"):
    bands = {"RGBA": 4, "CMYK": 4, "LA": 2, "L": 1}.get(mode, 3)
    data = np.random.default_rng(width * height).integers(0, 256, (height, width, bands), dtype=np.uint8)
    if mode == "P":
        return Image.fromarray(data).quantize(32)
    return Image.frombytes(mode, (width, height), data.tobytes())


@pytest.mark.parity
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
def test_evaluation_gives_the_pixels_of_openclip(resize_mode, interpolation):
    from open_clip.transform import image_transform

    shapes = [(40, 40), (57, 33), (33, 58), (16, 16), (16, 61), (200, 31), (7, 9), (48, 32)]
    for size in [(16, 16), (32, 32), (24, 24)]:
        theirs = image_transform(size[0], False, resize_mode=resize_mode, interpolation=interpolation, fill_color=7)
        mine = parse_preprocess(
            {
                "size": list(size),
                "resize_mode": resize_mode,
                "interpolation": interpolation,
                "fill_color": 7,
                "image_mode": "openclip",
            }
        )
        for shape in shapes:
            for mode, kind in MODES.items():
                if resize_mode == "longest" and mode != "RGB":
                    continue  # OpenCLIP pads before it converts: 7 is then ink, a palette index or an alpha
                payload = encoded(noise(*shape, mode), kind)
                image = Image.open(io.BytesIO(payload))
                for transform in theirs.transforms[:-2]:  # all but ToTensor and Normalize
                    image = transform(image)
                np.testing.assert_array_equal(mine.decode(payload), np.asarray(image), err_msg=f"{size}{shape}{mode}")
                if mode in ("RGB", "L"):
                    standard = dataclasses.replace(mine, image_mode="standard")
                    np.testing.assert_array_equal(standard.decode(payload), np.asarray(image))


@pytest.mark.parity
def test_crops_for_training_are_distributed_as_torchvisions():
    import torch
    from torchvision.transforms import RandomResizedCrop

    torch.manual_seed(0)
    augment = Augment(scale=(0.3, 1.0), ratio=(0.75, 4 / 3), hflip=0.0)
    rng = np.random.default_rng(0)
    image = Image.new("RGB", (90, 60))
    theirs = np.array([RandomResizedCrop.get_params(image, [0.3, 1.0], [0.75, 4 / 3]) for _ in range(6000)])
    boxes = np.array([crop_box(90, 60, augment, rng.random(40).tolist()) for _ in range(6000)])
    mine = np.stack([boxes[:, 1], boxes[:, 0], boxes[:, 3] - boxes[:, 1], boxes[:, 2] - boxes[:, 0]], 1)
    np.testing.assert_allclose(mine.mean(0), theirs.mean(0), atol=0.6)  # standard errors are below 0.2
    np.testing.assert_allclose(mine.std(0), theirs.std(0), atol=0.6)


def test_a_crop_that_never_fits_falls_back_to_the_centre():
    augment = Augment(scale=(1.0, 1.0), ratio=(0.5, 2.0), hflip=0.0)
    assert crop_box(400, 10, augment, [0.5] * 40) == (190, 0, 210, 10)
    assert crop_box(10, 400, augment, [0.5] * 40) == (0, 190, 10, 210)
    assert crop_box(30, 40, Augment(scale=(1.0, 1.0), ratio=(1.0, 1.0), hflip=0.0), [0.5] * 40) == (0, 5, 30, 35)


def test_sizes_are_height_by_width():
    for mode in ("shortest", "longest", "squash"):
        preprocess = parse_preprocess({"size": [12, 20], "resize_mode": mode})
        assert preprocess.decode(jpeg(make_image(1))).shape == (12, 20, 3)
    preprocess = parse_preprocess({"size": [12, 20], "augment": {}})
    assert preprocess.decode(jpeg(make_image(1)), 0).shape == (12, 20, 3)


def test_longest_pads_with_the_fill_colour():
    pixels = parse_preprocess({"size": [8, 8], "resize_mode": "longest", "fill_color": 9}).decode(
        encoded(Image.new("RGB", (16, 8), (200, 200, 200)))
    )
    assert (pixels[[0, 1, 6, 7]] == 9).all()
    assert (pixels[2:6] == 200).all()


def test_augmentation_depends_on_its_key_alone():
    payload = encoded(noise(60, 50))
    preprocess = parse_preprocess({"size": [16, 16], "augment": {"scale": [0.2, 1.0]}})
    seen = [preprocess.decode(payload, *key).tobytes() for key in [(0, 0, "a"), (0, 1, "a"), (1, 0, "a"), (0, 0, "b")]]
    assert len(set(seen)) == 4
    assert preprocess.decode(payload, 0, 0, "a").tobytes() == seen[0]


def test_flips_happen_as_often_as_asked():
    payload = encoded(noise(16, 16))
    plain, always, half = (
        parse_preprocess({"size": [16, 16], "augment": {"scale": [1, 1], "ratio": [1, 1], "hflip": p}})
        for p in (0.0, 1.0, 0.5)
    )
    straight = plain.decode(payload, 0)
    np.testing.assert_array_equal(always.decode(payload, 0), straight[:, ::-1])
    flips = sum(not np.array_equal(half.decode(payload, key), straight) for key in range(400))
    assert 150 < flips < 250


def test_a_flip_does_not_depend_on_the_crop(monkeypatch):
    payload, areas = encoded(noise(16, 16)), []

    def whole(width: int, height: int, augment: Augment, draws: list[float]) -> tuple[int, int, int, int]:
        areas.append(draws[0])
        return 0, 0, width, height

    monkeypatch.setattr(preprocess, "crop_box", whole)
    plain, half = (parse_preprocess({"size": [16, 16], "augment": {"hflip": p}}) for p in (0.0, 0.5))
    straight = plain.decode(payload, 0)
    areas.clear()
    flips = [not np.array_equal(half.decode(payload, key), straight) for key in range(400)]
    assert abs(np.corrcoef(flips, areas)[0, 1]) < 0.2


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"<html>", "it is of no known format"),
        (b"", "it is of no known format"),
        (jpeg(noise(64, 64))[:900], "does not decode as an image: .*truncated"),
        (encoded(noise(64, 64))[:900], "does not decode as an image: .*truncated"),
        (encoded(noise(8, 8), "BMP"), "it is of no known format"),
        (encoded(noise(8, 8), "GIF"), "it is of no known format"),
    ],
)
def test_what_does_not_decode_is_a_corrupt_sample(payload, reason):
    with pytest.raises(CorruptSample, match=reason):
        parse_preprocess({"size": [8, 8]}).decode(payload)


def test_an_absurdly_large_image_is_refused_before_it_is_decoded(monkeypatch):
    monkeypatch.setattr("clip_data.stream.preprocess.MAX_PIXELS", 99)
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", lambda self: pytest.fail("decoded"))
    with pytest.raises(CorruptSample, match="10 × 10 pixels; images over 99 are refused"):
        parse_preprocess({"size": [8, 8]}).decode(encoded(noise(10, 10)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sise": 3}, "preprocess: unknown key sise; did you mean size?"),
        ({"colour_space": 3}, "unknown key colour_space; valid keys: size, mode"),
        ({"size": 16}, "size = 16 must be a list of 2 values"),
        ({"size": [16, 0]}, "size = [16, 0] must be [height, width] in pixels"),
        ({"mode": "L"}, "mode = 'L' must be one of 'RGB'"),
        ({"interpolation": "nearest"}, "interpolation = 'nearest' must be one of 'bicubic', 'bilinear'"),
        ({"resize_mode": "shortst"}, "resize_mode = 'shortst' must be one of 'shortest', 'longest', 'squash'"),
        ({"mean": [0.5, 0.5]}, "mean = [0.5, 0.5] must be a list of 3 values"),
        ({"fill_color": 300}, "fill_color = 300 must be"),
        ({"image_mode": "clip"}, "image_mode = 'clip' must be one of 'standard', 'openclip'"),
        ({"augment": True}, "augment must be a table, not True"),
        ({"augment": {"flip": 1.0}}, "unknown key augment.flip; did you mean augment.hflip?"),
        ({"augment": {"scale": [0.9, 1.1]}}, "scale = [0.9, 1.1] must be [low, high] with 0 < low ≤ high ≤ 1.0"),
        ({"augment": {"ratio": [2, 1]}}, "ratio = [2.0, 1.0] must be [low, high]"),
        ({"augment": {"hflip": 2}}, "hflip = 2.0 must be a probability"),
    ],
)
def test_a_preprocess_dict_that_is_wrong_names_the_key_and_the_value(change, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        parse_preprocess({"size": [16, 16], **change})


def test_a_preprocess_dict_needs_a_size():
    with pytest.raises(ConfigError, match="preprocess: missing key size"):
        parse_preprocess({"mode": "RGB"})
