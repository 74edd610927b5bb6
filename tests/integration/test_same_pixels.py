"""The same image gives the same pixels on every path: stored and streamed, embedded, classified, scored, in Python."""

import io
import json
import struct
import tarfile

import numpy as np
import pytest
from PIL import Image

import clip_models
from clip_data.acquire import AcquireConfig, prepare_image
from clip_data.score.stage import _batches
from clip_data.stream.preprocess import parse_preprocess
from clip_models.cli import main
from clip_models.inference.encoder import Encoder
from tests.support import embeddings
from tests.support.datasets import make_dataset
from tests.support.images import encode, exif_orientation, noise

SIZE = (60, 44)
LEVELS = np.asarray(noise(*SIZE, seed=3).convert("L"))
ALPHA = noise(*SIZE, seed=4).convert("L")


def with_alpha(mode):
    image = noise(*SIZE).convert("L" if mode == "LA" else "RGB")
    image.putalpha(ALPHA)
    return image


def palette():
    return noise(*SIZE).quantize(32)


STORED = {  # the formats of shards
    "rgb.jpg": encode(noise(*SIZE), "JPEG"),
    "grey.jpg": encode(Image.fromarray(LEVELS), "JPEG"),
    "cmyk.jpg": encode(noise(*SIZE).convert("CMYK"), "JPEG"),
    "turned.jpg": encode(noise(*SIZE), "JPEG", exif=exif_orientation(3, b"\0\6")),
    "rational.jpg": encode(noise(*SIZE), "JPEG", exif=exif_orientation(5, struct.pack(">II", 6, 1))),
    "progressive.jpg": encode(noise(*SIZE), "JPEG", progressive=True),
    "16bit.png": encode(Image.fromarray(LEVELS.astype(np.uint16) * 257), "PNG"),
    "rgba.png": encode(with_alpha("RGBA"), "PNG"),
    "la.png": encode(with_alpha("LA"), "PNG"),
    "palette.png": encode(palette(), "PNG"),
    "palette_key.png": encode(palette(), "PNG", transparency=3),
    "palette_alpha.png": encode(palette(), "PNG", transparency=bytes(range(0, 256, 8))),
    "1bit.png": encode(Image.fromarray(LEVELS).convert("1"), "PNG"),
    "grey_key.png": encode(Image.fromarray(LEVELS // 64 * 64), "PNG", transparency=64),
    "turned.png": encode(with_alpha("RGBA"), "PNG", exif=exif_orientation(3, b"\0\3")),
    "rgba.webp": encode(with_alpha("RGBA"), "WEBP"),
    "animated.webp": encode(noise(*SIZE), "WEBP", save_all=True, append_images=[noise(*SIZE, seed=9)]),
}
OTHERS = {
    "float.tif": encode(Image.fromarray(LEVELS / np.float32(255)), "TIFF"),
    "32bit.tif": encode(Image.fromarray(LEVELS.astype(np.int32) * 257), "TIFF"),
    "16bit.tif": encode(Image.fromarray(LEVELS.astype(np.uint16) * 257), "TIFF"),
    "cmyk.tif": encode(noise(*SIZE).convert("CMYK"), "TIFF"),
    "turned.tif": encode(noise(*SIZE), "TIFF", exif=exif_orientation(3, b"\0\6")),
    "key.gif": encode(palette(), "GIF", transparency=3),
    "rgb.bmp": encode(noise(*SIZE), "BMP"),
}
IMAGES = dict(sorted({**STORED, **OTHERS}.items()))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = embeddings.model_file(tmp_path_factory.mktemp("weights"))
    return path, clip_models.create_model(embeddings.MODEL, pretrained=path).eval()


@pytest.fixture(scope="module")
def expected(model):
    """What is streamed of what acquire stores without loss, uint8 [N, H, W, 3]."""
    store = AcquireConfig(resize_mode="no", encode_format="png", encode_quality=1)
    stream = parse_preprocess(model[1].spec.preprocess.to_dict())
    return np.stack([stream.decode(prepare_image(data, store).data) for data in IMAGES.values()])


@pytest.fixture
def encoded(monkeypatch):
    """The pixels that reach a model."""
    seen = []
    encode_pixels = Encoder.encode_pixels

    def watched(self, pixels, *rest):
        seen.append(pixels)
        return encode_pixels(self, pixels, *rest)

    monkeypatch.setattr(Encoder, "encode_pixels", watched)
    return seen


def test_the_images_are_not_trivial(expected):
    assert len(np.unique(expected.reshape(len(expected), -1), axis=0)) > 15
    assert all(40 < image.mean() < 230 and image.std() > 10 for image in expected)


def test_streamed_as_a_stranger_stored_them(model, expected):
    stream = parse_preprocess(model[1].spec.preprocess.to_dict())
    for name, pixels in zip(IMAGES, expected, strict=True):
        if name in STORED:
            np.testing.assert_array_equal(stream.decode(IMAGES[name]), pixels, err_msg=name)


def test_scored(tmp_path, model, expected):
    rows = [{"image": data, "caption": name} for name, data in IMAGES.items()]
    dataset = make_dataset(tmp_path / "data", rows, rows_per_unit=len(rows))
    unit = dataset.units[0]
    [(_, batch)] = _batches(dataset, unit, dataset.sidecar(unit), np.arange(len(rows)), True)
    for name, image, pixels in zip(IMAGES, batch.images, expected, strict=True):
        np.testing.assert_array_equal(Encoder(model[1]).pixels(image), pixels, err_msg=name)


def test_embedded_from_a_folder_and_from_a_tar(tmp_path, model, expected, encoded):
    (tmp_path / "images").mkdir()
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for number, (name, data) in enumerate(IMAGES.items()):
            (tmp_path / "images" / name).write_bytes(data)
            info = tarfile.TarInfo(f"{number:03}.{name.rpartition('.')[2]}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    for source in ("images", "a.tar"):
        clip_models.embed(tmp_path / source, tmp_path / f"{source}.out", model=model[1], batch_size=len(IMAGES))
        np.testing.assert_array_equal(encoded.pop(), expected)


def test_classified(tmp_path, model, expected, encoded, capsys):
    paths = [tmp_path / name for name in IMAGES]
    for path in paths:
        path.write_bytes(IMAGES[path.name])
    flags = ["--labels", "a", "b", "--model", embeddings.MODEL, "--pretrained", str(model[0]), "--json"]
    with pytest.raises(SystemExit) as caught:
        main(["classify", *map(str, paths), *flags])
    assert caught.value.code == 0
    assert len(json.loads(capsys.readouterr().out)) == len(IMAGES)
    np.testing.assert_array_equal(encoded.pop(), expected)


def test_preprocessed_in_python(model, expected):
    preprocess = clip_models.create_model_and_transforms(embeddings.MODEL, seed=0)[2]
    for (name, data), pixels in zip(IMAGES.items(), expected, strict=True):
        image = Image.open(io.BytesIO(data))
        np.testing.assert_array_equal(preprocess.pixels(image), pixels, err_msg=name)
        np.testing.assert_array_equal(preprocess.pixels(clip_models.load_image(data)), pixels, err_msg=name)


@pytest.mark.parity
def test_the_mode_openclip_is_openclips(tmp_path, model, encoded):
    open_clip = pytest.importorskip("open_clip")
    (tmp_path / "images").mkdir()
    for name, data in IMAGES.items():
        (tmp_path / "images" / name).write_bytes(data)
    side = model[1].spec.preprocess.size[0]
    transforms = open_clip.image_transform(side, is_train=False).transforms[:-2]  # all but ToTensor and Normalize
    images = [Image.open(io.BytesIO(data)) for data in IMAGES.values()]
    for transform in transforms:
        images = [transform(image) for image in images]
    clip_models.embed(
        tmp_path / "images", tmp_path / "out", model=model[1], batch_size=len(IMAGES), image_mode="openclip"
    )
    wanted = np.stack([np.asarray(image) for image in images])
    np.testing.assert_array_equal(encoded.pop(), wanted)
    paths = [str(tmp_path / "images" / name) for name in IMAGES]
    flags = ["--labels", "a", "--model", embeddings.MODEL, "--pretrained", str(model[0]), "--image-mode", "openclip"]
    with pytest.raises(SystemExit):
        main(["classify", *paths, *flags])
    np.testing.assert_array_equal(encoded.pop(), wanted)
