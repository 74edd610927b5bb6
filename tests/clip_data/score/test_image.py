"""clip_data.score.image and phash: plain definitions, planted images, the bits of imagehash."""

import io

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image, ImageDraw

from clip_data.score import Batch, ImageScorer
from clip_data.score.phash import BASIS, SIDE, phash
from tests.support.datasets import jpeg, make_image


def score(*images):
    return ImageScorer().score(Batch(samples=pa.table({"row": list(range(len(images)))}), images=images)).to_pylist()


def noise(seed, size=(70, 50)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


@pytest.mark.parametrize("image", [noise(0), noise(1, (3, 9)), make_image(2), make_image(3, (512, 384))])
def test_statistics_are_their_textbook_definitions(image):
    (row,) = score(image)
    grey = np.asarray(image.convert("L"), dtype=np.float64)
    kernel = np.array([[0, 1, 0], [1, -4, 1], [0, 1, 0]])
    windows = np.lib.stride_tricks.sliding_window_view(grey, (3, 3))
    shares = np.bincount(grey.astype(int).ravel(), minlength=256) / grey.size
    shares = shares[shares > 0]
    red, green, blue = np.moveaxis(np.asarray(image, dtype=np.float64), -1, 0)
    rg, yb = red - green, (red + green) / 2 - blue
    colorfulness = np.hypot(rg.std(), yb.std()) + 0.3 * np.hypot(rg.mean(), yb.mean())
    wanted = {
        "aspect_ratio": image.width / image.height,
        "luminance": grey.mean(),
        "contrast": grey.std(),
        "entropy": -(shares * np.log2(shares)).sum(),
        "sharpness": (windows * kernel).sum((2, 3)).var(),
        "colorfulness": colorfulness,
    }
    assert {name: row[name] for name in wanted} == pytest.approx(wanted, rel=1e-5)


def test_a_flat_image_has_no_contrast_and_the_hash_of_all_flat_images():
    grey, red, black = score(*(Image.new("RGB", (40, 30), color) for color in ("#777777", "#ff0000", "#000000")))
    assert grey["contrast"] == grey["entropy"] == grey["sharpness"] == grey["colorfulness"] == 0
    assert red["colorfulness"] > 80
    assert grey["phash"] == red["phash"] == 1 << 63
    assert black["phash"] == 0


def test_an_image_too_small_for_the_laplacian_is_scored():
    (row,) = score(noise(0, (2, 1)))
    assert row["sharpness"] == 0
    assert row["aspect_ratio"] == 2


def test_blur_lowers_the_sharpness():
    sharp = noise(0)
    first, second = score(sharp, sharp.resize((35, 25)).resize((70, 50)))
    assert second["sharpness"] < first["sharpness"] / 4


def test_phash_of_a_symmetric_image_is_free_of_rounding_noise():
    image = Image.new("L", (64, 64), 20)
    ImageDraw.Draw(image).ellipse((16, 16, 47, 47), fill=200)
    turned = image.transpose(Image.Transpose.ROTATE_90)
    assert phash(image) == phash(turned)
    bits = np.unpackbits(np.frombuffer(phash(image).to_bytes(8, "big"), np.uint8)).reshape(8, 8)
    assert not bits[1::2].any()  # odd frequencies vanish
    assert not bits[:, 1::2].any()


@pytest.mark.parity
@pytest.mark.parametrize("make", [noise, make_image])
def test_phash_has_the_bits_of_imagehash(make):
    import imagehash

    for seed in range(60):
        image = make(seed, (60 + seed, 200 - seed))
        assert phash(image.convert("L")) == int(str(imagehash.phash(image)), 16), seed


def test_phash_is_the_sign_of_the_low_frequencies_against_their_median():
    grey = make_image(5).convert("L")
    pixels = np.asarray(grey.resize((SIDE, SIDE), Image.Resampling.LANCZOS), dtype=np.float64)
    low = BASIS @ pixels @ BASIS.T
    bits = [f"{phash(grey):064b}"[place] == "1" for place in range(64)]
    assert bits == (low > np.median(low)).ravel().tolist()
    assert sum(bits) == 32


def test_a_near_duplicate_keeps_its_phash_and_another_image_does_not():
    image = make_image(7, (256, 192))
    again = Image.open(io.BytesIO(jpeg(image, quality=60)))
    smaller = image.resize((128, 96), Image.Resampling.LANCZOS)
    first, same, shrunk, other = (row["phash"] for row in score(image, again, smaller, make_image(8, (256, 192))))
    assert first == same == shrunk
    assert (first ^ other).bit_count() > 8
