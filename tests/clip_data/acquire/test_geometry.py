"""Sizes of stored images: img2dataset's resize modes."""

import io
import itertools
import os

import pytest

from clip_data.acquire import AcquireConfig, Code, Rejected, prepare_image
from clip_data.acquire.geometry import plan_geometry
from tests.support.images import decode, encode, near, noise

MODES = ("no", "border", "keep_ratio", "keep_ratio_largest", "center_crop")
PNG = {"encode_format": "png", "encode_quality": 1}


@pytest.mark.parametrize(
    ("mode", "only_if_bigger", "size", "canvas"),
    [
        ("no", False, (300, 100), (300, 100)),
        ("keep_ratio", True, (300, 100), (150, 50)),
        ("keep_ratio", True, (100, 40), (100, 40)),
        ("keep_ratio", False, (100, 40), (125, 50)),
        ("keep_ratio_largest", True, (300, 100), (50, 17)),
        ("keep_ratio_largest", False, (20, 10), (50, 25)),
        ("border", True, (300, 100), (50, 50)),
        ("border", True, (40, 30), (40, 30)),
        ("border", False, (40, 30), (50, 50)),
        ("center_crop", True, (300, 100), (50, 50)),
        ("center_crop", True, (300, 50), (300, 50)),
        ("center_crop", False, (300, 40), (50, 50)),
    ],
)
def test_sizes(mode, only_if_bigger, size, canvas):
    config = AcquireConfig(image_size=50, resize_mode=mode, resize_only_if_bigger=only_if_bigger)
    assert plan_geometry(*size, config).canvas == canvas


def test_the_middle_is_cut_out_and_borders_are_white():
    image = noise(90, 30)
    image.paste("red", (0, 0, 30, 30))
    image.paste("lime", (30, 0, 60, 30))
    image.paste("blue", (60, 0, 90, 30))
    body = encode(image, "PNG")
    crop = decode(
        prepare_image(
            body, AcquireConfig(image_size=16, resize_mode="center_crop", encode_format="png", encode_quality=1)
        ).data
    )
    assert all(near(crop, (x, y), (0, 255, 0), 3) for x, y in itertools.product((1, 8, 14), (0, 15)))
    framed = decode(
        prepare_image(
            body, AcquireConfig(image_size=30, resize_mode="border", encode_format="png", encode_quality=1)
        ).data
    )
    assert [near(framed, (15, y), (0, 255, 0), 3) for y in (9, 11, 18, 20)] == [False, True, True, False]
    assert near(framed, (15, 9), (255, 255, 255), 0)


def test_sides_beyond_the_encode_format_are_refused():
    for form, side in (("jpg", 65_501), ("webp", 16_384)):
        with pytest.raises(Rejected, match="side_cap") as caught:
            plan_geometry(side, 1, AcquireConfig(resize_mode="no", encode_format=form))
        assert caught.value.code == Code.SIDE_CAP
    plan_geometry(100_000, 1, AcquireConfig(resize_mode="no", encode_format="png", encode_quality=1))


@pytest.mark.parity
def test_sizes_agree_with_img2dataset():
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # it would ask a server for its newest version
    from img2dataset.resizer import Resizer

    sizes = [(300, 200), (200, 300), (64, 64), (65, 63), (30, 90), (1, 50), (333, 1000), (97, 31), (640, 427)]
    bodies = {size: encode(noise(*size)) for size in sizes}
    for mode, only_if_bigger in itertools.product(MODES, (True, False)):
        theirs = Resizer(64, mode, only_if_bigger)
        config = AcquireConfig(image_size=64, resize_mode=mode, resize_only_if_bigger=only_if_bigger)
        for size, body in bodies.items():
            data, width, height, *_, error = theirs(io.BytesIO(body))
            assert error is None
            image = prepare_image(body, config)
            assert (mode, size, image.width, image.height) == (mode, size, width, height)
            if size != (1, 50):  # both images show the same, up to the filters
                ours, other = decode(image.data), decode(data)
                error = sum((a - b) ** 2 for a, b in zip(ours.tobytes(), other.tobytes(), strict=True))
                assert error / len(ours.tobytes()) < 60, (mode, size)
