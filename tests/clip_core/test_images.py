"""clip_core.images: which pixels every kind of image has, and what is refused."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from clip_core import ImageError, load_image, open_image, read_orientation, upright_rgb, upright_size
from clip_core.images import TRANSPOSE, webp_size
from tests.support.images import corners, encode, exif_orientation, near, noise

RED, BLUE, WHITE, BLACK = (255, 0, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_a_path_the_bytes_and_an_open_file_are_the_same(tmp_path, form):
    data = encode(noise(40, 30), form)
    path = tmp_path / "picture.bin"  # the content tells the format, not the name
    path.write_bytes(data)
    found = [load_image(source) for source in (path, str(path), data, io.BytesIO(data))]
    assert {image.size for image in found} == {(40, 30)}
    assert len({image.tobytes() for image in found}) == 1


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_of_several(form):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue", "lime")]
    image = load_image(encode(frames[0], form, save_all=True, append_images=frames[1:]))
    assert near(image.convert("RGB"), (8, 8), (255, 0, 0))


def filled(mode, value):
    return Image.new(mode, (8, 8), value)


def wide(value, dtype):
    return Image.fromarray(np.full((8, 8), value, dtype))


def palette(alpha=False):
    image = filled("P", 1)
    image.putpalette([0, 0, 0, 255, 0, 0])
    if not alpha:
        return image
    image = image.convert("PA")
    image.putalpha(128)
    return image


def keyed(image, transparency):
    image.info["transparency"] = transparency
    return image


COLOURS = [
    (filled("1", 1), WHITE), (filled("L", 100), (100,) * 3), (filled("RGB", RED), RED), (palette(), RED),
    (filled("RGBX", (*RED, 7)), RED), (filled("CMYK", (255, 255, 0, 0)), BLUE), (filled("CMYK", (0, 0, 0, 255)), BLACK),
    (filled("YCbCr", (255, 128, 128)), WHITE), (filled("HSV", (0, 255, 255)), RED),
    (filled("LAB", (255, 128, 128)), WHITE), (filled("LA", (0, 128)), (127,) * 3),
    (filled("LA", (0, 128)).convert("La"), (127,) * 3),
    (filled("RGBA", (*RED, 128)), (255, 127, 127)), (filled("RGBA", (*RED, 0)), WHITE),
    (filled("RGBA", (*RED, 128)).convert("RGBa"), (255, 127, 127)), (palette(alpha=True), (255, 127, 127)),
    (keyed(palette(), 1), WHITE), (keyed(palette(), bytes([255, 0])), WHITE), (keyed(palette(), 0), RED),
    (keyed(filled("RGB", RED), RED), WHITE), (keyed(filled("L", 9), 9), WHITE),
    (wide(0x80FF, np.uint16), (128,) * 3), (wide(0x80FF, ">u2"), (128,) * 3), (wide(255, np.uint16), BLACK),
    (keyed(wide(0x80FF, np.uint16), 0x80FF), WHITE), (keyed(wide(0x80FE, np.uint16), 0x80FF), (128,) * 3),
    (wide(0x80FF, np.int32), (128,) * 3), (wide(200, np.int32), (200,) * 3), (wide(65535, np.int32), WHITE),
    (wide(0.5, np.float32), (128,) * 3), (wide(1, np.float32), WHITE), (wide(0, np.float32), BLACK),
    (wide(99.6, np.float32), (100,) * 3), (wide(0x80FF, np.float32), (128,) * 3),
]  # fmt: skip


@pytest.mark.parametrize(
    ("image", "colour"), COLOURS, ids=[f"{i}-{image.mode}" for i, (image, _) in enumerate(COLOURS)]
)
def test_images_of_every_mode_become_opaque_rgb(image, colour):
    before = image.mode, dict(image.info), image.tobytes()
    rgb = upright_rgb(image)
    assert (rgb.mode, rgb.size) == ("RGB", (8, 8))
    assert near(rgb, (4, 4), colour, 1)
    assert upright_rgb(rgb).tobytes() == rgb.tobytes()
    assert (image.mode, dict(image.info), image.tobytes()) == before


def test_a_gradient_keeps_its_shape_in_16_bits_and_floats():
    ramp = np.linspace(0, 1, 256, dtype=np.float32)[None].repeat(4, 0)
    wanted = np.rint(ramp * 255)
    for array, tolerance in ((ramp, 0), (ramp * 255, 0), (ramp * 65535, 1), ((ramp * 65535).astype(np.uint16), 1)):
        found = np.asarray(upright_rgb(Image.fromarray(array)), np.float32)[..., 0]
        assert np.abs(found - wanted).max() <= tolerance


def test_tiffs_in_which_white_is_zero_are_not_inverted():
    ramp = np.linspace(0, 65535, 64, dtype=np.uint16)[None].repeat(4, 0)
    black_is_zero = encode(Image.fromarray(ramp), "TIFF")
    photometric = [struct.pack("<HHIHH", 262, 3, 1, value, 0) for value in (1, 0)]
    assert photometric[0] in black_is_zero
    white_is_zero = encode(Image.fromarray(65535 - ramp), "TIFF").replace(*photometric)
    assert load_image(white_is_zero).tobytes() == load_image(black_is_zero).tobytes()


@pytest.mark.parametrize("value", [-1, 65536, np.nan, np.inf, -np.inf])
def test_values_without_an_8_bit_form_are_refused(value):
    values = np.full((4, 4), 0.5, np.float32)
    values[1, 2] = value
    with pytest.raises(ImageError, match=r"scan.tif holds values from .* to .*; only 0 to 1, 255 or 65535") as caught:
        load_image(encode(Image.fromarray(values), "TIFF"), name="scan.tif")
    assert caught.value.code == "pixel_format"


def with_orientation(value, form="JPEG", image=None):
    """`image` with an EXIF orientation of any type."""
    exif = Image.Exif()
    exif[0x0112] = value
    return encode(image or corners(40, 20), form, exif=exif, **({"quality": 95} if form == "JPEG" else {}))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", [1, *TRANSPOSE])
def test_the_orientation_is_applied(form, orientation):
    upright = corners(64, 32)
    back = {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}.get(orientation, TRANSPOSE.get(orientation))
    data = with_orientation(orientation, form, upright if back is None else upright.transpose(back))
    image = load_image(data)
    assert image.size == (64, 32)
    places = [(16, 8), (48, 8), (16, 24), (48, 24)]
    for place, colour in zip(places, (RED, (0, 255, 0), BLUE, WHITE), strict=True):
        assert near(image, place, colour, 60)
    lazy = open_image(io.BytesIO(data))
    assert read_orientation(lazy) == orientation
    assert upright_size(lazy, orientation) == (64, 32)
    assert upright_rgb(image).tobytes() == upright_rgb(Image.open(io.BytesIO(data))).tobytes() == image.tobytes()
    if form != "TIFF":  # Pillow itself turns a TIFF
        assert load_image(data, image_mode="openclip").size == lazy.size


@pytest.mark.parametrize(
    "value", [TiffImagePlugin.IFDRational(6, 1), "6", b"\6", 6.0, float("nan"), (6,), [6], None, -6]
)
def test_an_orientation_of_another_type_means_no_rotation(value):
    image = corners(40, 20)
    image.getexif()[0x0112] = value
    assert read_orientation(image) == 1
    assert upright_rgb(image).size == (40, 20)


# The types of TIFF, and some that are none: those of integers may be an orientation, if they fit.
TYPES = [(kind, value, count) for kind in range(16) for value in (b"\0\6", b"\xff" * 4) for count in (0, 1, 2, 2**31)]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "block",
    [
        *(exif_orientation(*entry) for entry in TYPES),
        *(exif_orientation(5, struct.pack(">II", 6, lower)) for lower in (0, 1)),
        b"Exif\0\0", b"Exif\0\0MM\0*", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"\xff" * 60_000,
        b"Exif\0\0MM\0*\0\0\0\x08" + struct.pack(">HHHI4sI", 1, 0x8769, 4, 1, b"\0\0\0\x08", 8),  # points at itself
    ],
)  # fmt: skip
def test_a_damaged_exif_block_costs_the_rotation_at_most(block):
    for form in ("JPEG", "PNG", "WEBP"):
        data = encode(corners(40, 20), form, exif=block)
        orientation = read_orientation(open_image(io.BytesIO(data)))
        assert orientation in (1, 6)
        assert load_image(data).size == ((20, 40) if orientation == 6 else (40, 20))


@pytest.mark.parametrize(("value", "size"), [("6", (20, 40)), ("1", (40, 20)), ("0", (40, 20)), ("9", (40, 20))])
def test_an_orientation_in_xmp_counts_too(value, size):
    xmp = f'<x:xmpmeta><rdf:Description tiff:Orientation="{value}"/></x:xmpmeta>'.encode()
    for form in ("JPEG", "WEBP"):
        data = encode(corners(40, 20), form, xmp=xmp)
        assert load_image(data).size == size
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[700] = xmp
    tags.tagtype[700] = 7
    data = encode(corners(40, 20), "TIFF", tiffinfo=tags)
    lazy = open_image(io.BytesIO(data))
    assert load_image(data).size == upright_size(lazy, read_orientation(lazy)) == size


def test_openclip_mode_gives_what_pillow_decodes():
    data = encode(filled("RGBA", (*RED, 128)), "PNG")
    image = load_image(data, image_mode="openclip")
    assert (image.mode, image.getpixel((0, 0))) == ("RGBA", (*RED, 128))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "does not decode as an image: it is of no known format"),
        (b"<html>not found</html>", "does not decode as an image: it is of no known format"),
        (encode(noise(200, 200), "JPEG")[:900], "does not decode as an image: image file is truncated"),
        (encode(noise(200, 200), "PNG")[:900], "does not decode as an image"),
        (encode(noise(200, 200), "WEBP")[:100], "does not decode as an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n", "it is of no known format"),
    ],
    ids=["empty", "html", "jpeg", "png", "webp", "eps"],
)
def test_what_does_not_decode_is_an_error_that_names_the_file(tmp_path, data, reason):
    path = tmp_path / "broken.jpg"
    path.write_bytes(data)
    with pytest.raises(ImageError) as caught:
        load_image(path)
    assert str(caught.value).startswith(f"{path} ")
    assert reason in str(caught.value)
    assert caught.value.code == "undecodable"
    with pytest.raises(ImageError, match=r"the image does not decode|shard.tar/3.jpg") as caught:
        load_image(data, name="shard.tar/3.jpg" if data else "")
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_too_many_pixels_are_refused_before_they_are_decoded():
    with pytest.raises(ImageError, match=r"x.png has 100 × 80 pixels; images over 7,999 are refused") as caught:
        load_image(encode(noise(100, 80), "PNG")[:200], max_pixels=7_999, name="x.png")  # cut off: never decoded
    assert caught.value.code == "too_large"
    assert load_image(encode(noise(100, 80), "PNG"), max_pixels=8_000).size == (100, 80)
    bomb = encode(Image.new("1", (14_000, 14_000)), "PNG")  # 25 KB that would be 588 MB in RGB
    with pytest.raises(ImageError, match="refused") as caught:
        load_image(bomb)
    assert caught.value.code == "too_large"


def test_bombs_of_other_kinds_are_refused():
    webp = bytearray(encode(noise(8, 8), "WEBP", lossless=True))
    webp[21:25] = struct.pack("<I", 16_383 | 16_383 << 14)
    body = encode(noise(400, 400), "JPEG", progressive=True)
    scan = body[body.rindex(b"\xff\xda") : -2]
    for data in (bytes(webp), body[:-2] + scan * 3000 + body[-2:]):
        with pytest.raises(ImageError) as caught:
            load_image(data, max_pixels=1_000_000)
        assert caught.value.code == "too_large"
    assert load_image(body, max_pixels=160_000).size == (400, 400)


def test_scans_are_counted_across_blocks_of_the_file():
    body = encode(noise(16, 16), "JPEG", progressive=True)
    scan = body[body.rindex(b"\xff\xda") : -2]
    most = 16  # scans of an image that has max_pixels pixels
    for split in (0, 1):
        start = body.index(b"\xff\xda")
        comments = (1 << 20) - start - split  # the first scan begins `split` bytes before the second block of 1 MiB
        filler = b""
        while (left := comments - len(filler)) > 65_000:
            filler += b"\xff\xfe" + struct.pack(">H", 60_000) + bytes(59_998)
        filler += b"\xff\xfe" + struct.pack(">H", left - 2) + bytes(left - 4)
        whole = body[:start] + filler + body[start:-2]
        assert whole.index(b"\xff\xda") == (1 << 20) - split
        enough = most - whole.count(b"\xff\xda")
        assert load_image(whole + scan * enough + body[-2:], max_pixels=256).size == (16, 16)
        with pytest.raises(ImageError, match=f"has {most + 1} scans of 16 × 16 pixels"):
            load_image(whole + scan * (enough + 1) + body[-2:], max_pixels=256)


def test_an_image_without_pixels_is_refused():
    size = struct.pack(">IIBB3x", 0, 5, 8, 2)
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in ((b"IHDR", size), (b"IDAT", zlib.compress(b"")), (b"IEND", b""))
    )
    with pytest.raises(ImageError) as caught:
        load_image(data)
    assert caught.value.code == "undecodable"


def test_a_file_that_is_not_there_is_named(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    for path in (tmp_path / "none.jpg", tmp_path, tmp_path / "pipe.jpg", f"{tmp_path}/nul\0.jpg"):
        with pytest.raises(ImageError, match="cannot be read") as caught:
            load_image(path)
        assert str(path) in str(caught.value)
        assert caught.value.code == "missing"


def test_sizes_of_webp_are_read_from_every_kind_of_header():
    bodies = [
        encode(noise(70, 33), "WEBP"),
        encode(noise(70, 33), "WEBP", lossless=True),
        encode(Image.new("RGBA", (70, 33), (1, 2, 3, 4)), "WEBP"),
    ]
    assert [webp_size(body) for body in bodies] == [(70, 33)] * 3
    assert webp_size(b"RIFF\0\0\0\0WEBP") is None
