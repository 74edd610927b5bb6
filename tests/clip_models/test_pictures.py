"""clip_models.pictures: what load_image opens, and what it refuses."""

import io

import pytest
from PIL import Image

from clip_models import ClipModelsError
from clip_models.pictures import PictureError, load_image
from tests.support.pictures import corners, encode, near, noise


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


def test_the_orientation_is_applied_on_request_only():
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter clockwise
    data = encode(corners(40, 20), "JPEG", exif=exif, quality=95)
    assert load_image(data).size == (40, 20)
    turned = load_image(data, upright=True)
    assert turned.size == (20, 40)
    assert near(turned, (15, 5), (255, 0, 0), 40)  # the red corner moves from the top left to the top right


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "does not decode as a picture: it is of no known format"),
        (b"<html>not found</html>", "does not decode as a picture: it is of no known format"),
        (encode(noise(200, 200), "JPEG")[:900], "does not decode as a picture: image file is truncated"),
        (encode(noise(200, 200), "PNG")[:900], "does not decode as a picture"),
        (encode(noise(200, 200), "WEBP")[:100], "does not decode as a picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n", "it is of no known format"),
    ],
    ids=["empty", "html", "jpeg", "png", "webp", "eps"],
)
def test_what_does_not_decode_is_an_error_that_names_the_file(tmp_path, data, reason):
    path = tmp_path / "broken.jpg"
    path.write_bytes(data)
    with pytest.raises(ClipModelsError) as caught:
        load_image(path)
    assert str(caught.value).startswith(f"{path} ")
    assert reason in str(caught.value)
    assert caught.value.code == "undecodable"
    with pytest.raises(ClipModelsError, match=r"the picture does not decode|shard.tar/3.jpg") as caught:
        load_image(data, name="shard.tar/3.jpg" if data else "")
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_too_many_pixels_are_refused_before_they_are_decoded():
    with pytest.raises(PictureError, match=r"x.png has 100 × 80 pixels; pictures over 7,999 are refused") as caught:
        load_image(encode(noise(100, 80), "PNG")[:200], max_pixels=7_999, name="x.png")  # cut off: never decoded
    assert caught.value.code == "too_large"
    assert load_image(encode(noise(100, 80), "PNG"), max_pixels=8_000).size == (100, 80)
    bomb = encode(Image.new("1", (14_000, 14_000)), "PNG")  # 25 KB that would be 588 MB in RGB
    with pytest.raises(PictureError, match="refused") as caught:
        load_image(bomb)
    assert caught.value.code == "too_large"


def test_a_file_that_is_not_there_is_named(tmp_path):
    for path in (tmp_path / "none.jpg", tmp_path):
        with pytest.raises(PictureError, match="cannot be read") as caught:
            load_image(path)
        assert str(path) in str(caught.value)
        assert caught.value.code == "missing"
