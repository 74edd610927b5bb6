"""Preprocessing against OpenCLIP's image_transform: the same tensors, bit for bit.

Images in RGB and grey are the same in both image modes; what OpenCLIP makes of others is the mode openclip.
"""

import io
import random

import numpy as np
import pytest
import torch
from PIL import Image

import clip_models
from clip_core import load_image
from clip_models import PreprocessConfig, preprocess_eval, preprocess_train
from clip_models.preprocess.image import image_transform, image_transform_v2

open_clip = pytest.importorskip("open_clip")
pytestmark = pytest.mark.parity

MODES = [
    "RGB",
    "L",
    "LA",
    "P",
    "P+alpha",
    "PA",
    "RGBA",
    "RGBa",
    "RGBX",
    "1",
    "CMYK",
    "YCbCr",
    "HSV",
    "LAB",
    "I;16",
    "I",
    "F",
]
PLAIN = ("RGB", "L")
# (width, height): larger and smaller than the target, equal to it, and with odd remainders on both sides.
SIZES = [(97, 61), (61, 97), (64, 64), (20, 33), (65, 64), (300, 40), (3, 3)]
EXTREME = [(1, 1), (400, 10), (10, 400), (1, 50), (50, 1), (2, 300)]


def make_image(mode: str, width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(width * 1000 + height)
    coarse = rng.integers(0, 256, (height // 4 + 1, width // 4 + 1, 4), dtype=np.uint8)
    original = Image.fromarray(coarse, "RGBA").resize((width, height), Image.Resampling.BICUBIC)
    if mode in ("RGBA", "RGBa"):
        return original.convert(mode)
    if mode in ("P", "P+alpha", "PA"):
        palette = original.convert("RGB").quantize(32)
        if mode == "P+alpha":
            palette.info["transparency"] = 5
        return palette.convert("PA") if mode == "PA" else palette
    if mode in ("I;16", "I", "F"):
        deep = np.asarray(original.convert("L")).astype(np.float32) * 257 - (0 if mode == "I;16" else 500)
        return Image.fromarray(deep.astype({"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]))
    if mode == "LAB":
        from PIL import ImageCms

        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        return ImageCms.profileToProfile(original.convert("RGB"), *profiles, outputMode="LAB")
    return original.convert(mode) if mode in ("L", "LA", "1") else original.convert("RGB").convert(mode)


def outcome(transform, original):
    """What the transform gives, or None where it cannot handle the image."""
    try:
        return transform(original)
    except (ValueError, OSError, RuntimeError):
        return None


def assert_same(ours, reference, original, hint):
    expected = outcome(reference, original.copy())
    result = outcome(ours, original.copy())
    if expected is None:  # Pillow cannot resize or convert the mode: neither can we
        return False
    assert result is not None, hint
    assert torch.equal(result, expected), hint
    return True


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("mode", MODES)
def test_eval_is_identical(mode, resize_mode, interpolation):
    options = {"resize_mode": resize_mode, "interpolation": interpolation, "fill_color": 77}
    reference = open_clip.image_transform(64, is_train=False, **options)
    config = PreprocessConfig(size=(64, 64), **options)
    transforms = [preprocess_eval(config, "openclip")] + [preprocess_eval(config)] * (mode in PLAIN)
    compared = 0
    for width, height in [*SIZES, *EXTREME]:
        original = make_image(mode, width, height)
        assert original.mode == mode.partition("+")[0]
        compared += all(assert_same(ours, reference, original, (width, height)) for ours in transforms)
    assert compared >= len(SIZES)


@pytest.mark.parametrize("size", [(1, 9_001), (9_000, 1), (28_011, 3)])
def test_a_line_of_pixels_is_identical_too(size):
    """It is cut before it is resized, where OpenCLIP makes an image of 40 million pixels from it."""
    original = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))
    reference = open_clip.image_transform(64, is_train=False)
    ours = preprocess_eval(PreprocessConfig(size=(64, 64)))
    assert torch.equal(ours(original), reference(original))


@pytest.mark.parametrize("size", [(48, 80), (80, 48), (33, 7)])
@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
def test_eval_is_identical_for_a_target_that_is_not_square(resize_mode, size):
    options = {"resize_mode": resize_mode, "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4), "fill_color": 9}
    reference = open_clip.image_transform(size, is_train=False, **options)
    ours = image_transform(size, is_train=False, image_mode="openclip", **options)
    for mode in ("RGB", "P", "LA", "I;16"):
        for width, height in SIZES:
            assert assert_same(ours, reference, make_image(mode, width, height), (mode, width, height))


def test_arguments_mean_what_they_mean_there():
    original = make_image("RGB", 97, 61)
    for arguments in (
        {"image_size": 32},
        {"image_size": (32, 48), "resize_mode": "squash"},
        {"image_size": [32, 32], "mean": 0.5, "std": 0.25},
        {"image_size": 32, "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "interpolation": "random"},
        {"image_size": 32, "resize_mode": "longest", "fill_color": 200},
    ):
        reference = open_clip.image_transform(is_train=False, **arguments)
        assert torch.equal(image_transform(is_train=False, **arguments)(original), reference(original)), arguments
    config = {"size": 32, "interpolation": "bilinear", "resize_mode": "longest", "fill_color": 3}
    theirs = open_clip.transform.image_transform_v2(open_clip.transform.PreprocessCfg(**config), is_train=False)
    ours = image_transform_v2(PreprocessConfig(**{**config, "size": (32, 32)}), is_train=False)
    assert torch.equal(ours(original), theirs(original))


FILES = {
    "gif": {"form": "GIF", "frames": 3},
    "webp": {"form": "WEBP", "frames": 3, "lossless": True},
    "apng": {"form": "PNG", "frames": 2},
    "exif": {"form": "JPEG", "exif": True},
    "png16": {"form": "PNG", "mode": "I;16"},
    "tiff_cmyk": {"form": "TIFF", "mode": "CMYK"},
    "jpeg_cmyk": {"form": "JPEG", "mode": "CMYK"},
    "png_palette_alpha": {"form": "PNG", "mode": "P", "transparency": 3},
    "png_1": {"form": "PNG", "mode": "1"},
    "gif_alpha": {"form": "GIF", "mode": "P", "transparency": 7},
}


@pytest.mark.parametrize("name", FILES)
def test_files_are_read_as_pillow_reads_them_there(name, tmp_path):
    options = dict(FILES[name])
    form, mode, frames = options.pop("form"), options.pop("mode", "RGB"), options.pop("frames", 1)
    images = [make_image(mode, 90 + frame, 70).resize((90, 70)) for frame in range(frames)]
    if frames > 1:
        options |= {"save_all": True, "append_images": images[1:]}
    if options.pop("exif", False):
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = 6
    buffer = io.BytesIO()
    images[0].save(buffer, form, **options)
    path = tmp_path / f"original.{form.lower()}"
    path.write_bytes(buffer.getvalue())
    for resize_mode in ("shortest", "longest"):
        reference = open_clip.image_transform(48, is_train=False, resize_mode=resize_mode)
        ours = preprocess_eval(PreprocessConfig(size=(48, 48), resize_mode=resize_mode), "openclip")
        expected = reference(Image.open(path))
        assert torch.equal(ours(load_image(path, image_mode="openclip")), expected)
        assert torch.equal(ours(load_image(buffer.getvalue(), image_mode="openclip")), expected)


def seeded(seed, transform, original):
    torch.manual_seed(seed)
    random.seed(seed)
    return transform(original.copy())


AUGMENTATIONS = {
    "default": {},
    "wide": {"scale": (0.08, 1.0)},
    "simclr": {
        "scale": (0.4, 1.0), "color_jitter": (0.32, 0.32, 0.32, 0.08), "color_jitter_prob": 0.8, "gray_scale_prob": 0.3
    },
    "one_colour": {"color_jitter": (0.0, 0.9, 0.0, 0.5), "color_jitter_prob": 1.0},
    "strong": {"color_jitter": (1.5, 2.0, 3.0, 0.0), "color_jitter_prob": 1.0},
    "gray": {"gray_scale_prob": 0.5},
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Unused augmentation")
@pytest.mark.parametrize("name", AUGMENTATIONS)
@pytest.mark.parametrize("mode", ["RGB", "P", "RGBA", "L", "1", "CMYK", "LA"])
def test_training_is_identical_for_a_seed(mode, name):
    reference = open_clip.image_transform((48, 64), is_train=True, aug_cfg=AUGMENTATIONS[name])
    image_mode = "standard" if mode in PLAIN else "openclip"
    ours = image_transform((48, 64), is_train=True, aug_cfg=AUGMENTATIONS[name], image_mode=image_mode)
    for seed, (width, height) in enumerate([*SIZES, (400, 10), (10, 400), *SIZES]):
        original = make_image(mode, width, height)
        assert torch.equal(seeded(seed, ours, original), seeded(seed, reference, original)), (width, height)


@pytest.mark.parametrize(
    "options",
    [
        {"scale": (0.2, 1.0)},
        {"scale": (0.2, 1.0), "ratio": (0.5, 2.0), "re_prob": 0.6, "re_count": 4},
        {"re_prob": 1.0},
        {"color_jitter": 0.4},
        {"color_jitter": (0.3, 0.2, 0.1, 0.05), "re_prob": 0.3},
    ],
)
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "random"])
def test_the_timm_branch_is_identical_for_a_seed(options, interpolation):
    pytest.importorskip("timm")
    arguments = {"is_train": True, "interpolation": interpolation, "aug_cfg": {**options, "use_timm": True}}
    reference = open_clip.image_transform((48, 64), **arguments)
    ours = image_transform((48, 64), **arguments)
    for seed, (width, height) in enumerate([*SIZES, (400, 10), *SIZES]):
        original = make_image("RGB", width, height)
        assert torch.equal(seeded(seed, ours, original), seeded(seed, reference, original)), (width, height)


def test_interpolation_in_training_is_the_configured_one():
    """The one thing where OpenCLIP does otherwise: its crops are bicubic whatever the configuration says."""
    original, options = make_image("RGB", 97, 61), {"size": (48, 48), "interpolation": "bilinear"}
    reference = open_clip.image_transform(48, is_train=True, interpolation="bilinear")
    as_there = preprocess_train(PreprocessConfig(**options), {"interpolation": "bicubic"})
    assert torch.equal(seeded(0, as_there, original), seeded(0, reference, original))
    assert not torch.equal(
        seeded(0, preprocess_train(PreprocessConfig(**options)), original), seeded(0, reference, original)
    )


def test_the_transforms_of_a_model_are_the_same():
    ours = clip_models.create_model_and_transforms("ViT-Ti-4-24", seed=0)[1:]
    size = clip_models.get_model_spec("ViT-Ti-4-24").preprocess.size
    theirs = [open_clip.image_transform(size, is_train=is_train) for is_train in (True, False)]
    original = make_image("RGB", 97, 61)
    for mine, reference in zip(ours, theirs, strict=True):
        assert torch.equal(seeded(1, mine, original), seeded(1, reference, original))
