"""The bytes behind each kind of URL that answers with an image, or with something in its place."""

import io
from base64 import b64decode

from PIL import ExifTags, Image, ImageDraw

from clip_data.demo.drawing import encode, render, save
from clip_data.demo.scenes import Scene

# A PNG of about 100 bytes whose header promises 900 million pixels, of which it holds one row.
PIXEL_BOMB = b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAdTAAAHUwCAAAAABDTKdmAAAANElEQVR4nO3BMQEAAADCoP"
    "VPbQlPoAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAPgZ1MAABMhfM0gAAAABJRU5ErkJggg=="
)
_ROTATIONS = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}

HTML = b"<!doctype html>\n<title>Not here</title>\n<p>This picture has moved to our new gallery.</p>\n"


def body(kind: str, scene: Scene) -> tuple[bytes, str]:
    """Returns (file, MIME type) for a row of this kind; kinds without a special body get the scene as it is."""
    if kind == "html":
        # Every other server also lies about the type.
        return HTML, "text/html" if scene.index % 2 == 0 else "image/jpeg"
    if kind == "pixel_bomb":
        return PIXEL_BOMB, "image/png"
    image = render(scene)
    if kind == "duplicate_pixels":
        # A realistic copy: the file that "ok" serves, opened and saved again at another quality.
        original = Image.open(io.BytesIO(encode(image, scene.format, scene.quality)))
        return encode(original, "jpeg", 97), "image/jpeg"
    if kind.startswith("tiny_"):
        side = int(kind.rpartition("x")[2])
        return save(image.resize((side, side), Image.Resampling.BOX), "PNG"), "image/png"
    if kind == "exif_rotated":
        orientation = (3, 6, 8)[scene.index % 3]
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        return save(image.transpose(_ROTATIONS[orientation]), "JPEG", quality=92, exif=exif), "image/jpeg"
    if kind in ("animated_gif", "animated_webp"):
        name = kind.removeprefix("animated_")
        frames = [image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)]
        return save(image, name.upper(), save_all=True, append_images=frames, duration=100), f"image/{name}"
    if kind == "cmyk_jpeg":
        return save(image.convert("CMYK"), "JPEG", quality=92), "image/jpeg"
    if kind == "rgba_png":
        return save(_round_corners(image), "PNG", compress_level=1), "image/png"
    return encode(image, scene.format, scene.quality), f"image/{scene.format}"


def _round_corners(image: Image.Image) -> Image.Image:
    """Returns RGBA with transparent corners; the objects stay visible on any ground."""
    alpha = Image.new("L", image.size, 0)
    corner = min(image.size) // 8
    ImageDraw.Draw(alpha).rounded_rectangle((0, 0, image.width - 1, image.height - 1), radius=corner, fill=255)
    rounded = image.convert("RGBA")
    rounded.putalpha(alpha)
    return rounded
