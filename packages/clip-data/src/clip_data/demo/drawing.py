"""Draws scenes with Pillow: about two milliseconds an image, encoding included."""

import io
import math

import numpy as np
from PIL import Image, ImageDraw

from clip_data.demo.data import load
from clip_data.demo.scenes import BACKGROUNDS, Scene, SceneObject

# Masks are drawn three times as large and reduced, which is what antialiases the edges.
_OVERSAMPLING = 3
# Half the side of an object's own canvas, in radii: a square's corner lies at 0.84 * sqrt(2).
_REACH = 1.2
# Polygons in radii around the centre, y down.
_OUTLINES = load("outlines.json")
_DISCS = load("scenes.toml")["discs"]


def object_mask(thing: SceneObject) -> tuple[Image.Image, int, int]:
    """Returns the coverage of one object, an 8-bit "L" image, and the place of its top left corner in the scene."""
    radius = thing.size / 2
    side = math.ceil(2 * _REACH * radius)
    left, top = round(thing.x - side / 2), round(thing.y - side / 2)
    scale = radius * _OVERSAMPLING
    centre_x, centre_y = (thing.x - left) * _OVERSAMPLING, (thing.y - top) * _OVERSAMPLING
    turn = math.radians(thing.rotation)
    cos, sin = math.cos(turn) * scale, math.sin(turn) * scale
    flip = -1 if thing.mirrored else 1

    def place(x: float, y: float) -> tuple[float, float]:
        return centre_x + flip * x * cos - y * sin, centre_y + flip * x * sin + y * cos

    mask = Image.new("L", (side * _OVERSAMPLING, side * _OVERSAMPLING), 0)
    draw = ImageDraw.Draw(mask)
    if thing.shape in _OUTLINES:
        draw.polygon([place(x, y) for x, y in _OUTLINES[thing.shape]], fill=255)
    for disc_x, disc_radius, ink in _DISCS.get(thing.shape, ()):
        x, y = place(disc_x, 0.0)
        reach = disc_radius * scale
        draw.ellipse((x - reach, y - reach, x + reach, y + reach), fill=ink)
    return mask.reduce(_OVERSAMPLING), left, top


def _fill(thing: SceneObject, side: int) -> Image.Image:
    """Returns the object's surface, an RGB image [side, side]."""
    if thing.texture == "plain":
        return Image.new("RGB", (side, side), thing.rgb)
    turn = math.radians(thing.rotation + 45 * (thing.texture == "striped"))
    axis = (np.arange(side, dtype=np.float32) - side / 2) * (2 * math.pi / (thing.size * 0.24))
    across = axis[None, :] * math.cos(turn) + axis[:, None] * math.sin(turn)
    along = axis[:, None] * math.cos(turn) - axis[None, :] * math.sin(turn)
    if thing.texture == "striped":
        wave = np.sin(across)
    elif thing.texture == "dotted":
        wave = np.cos(across) + np.cos(along) - 0.5
    else:
        wave = np.sin(across * 0.6) * np.sin(along * 0.6) * 2
    share = np.clip(wave * 1.5 + 0.5, 0.0, 1.0)[:, :, None]
    # The second tone is a darker shade of the same hue, or a lighter one of nearly black.
    base, brightest = np.array(thing.rgb, np.float32), max(thing.rgb)
    darker = np.rint(np.array(thing.rgb) * (0.82 if brightest > 235 else 0.72)).astype(np.float32)
    second = base + 52 if brightest < 64 else darker
    return Image.fromarray((base + (second - base) * share + 0.5).astype(np.uint8))


def _ground(scene: Scene) -> Image.Image:
    ground = scene.background
    rng = np.random.default_rng(scene.noise_seed)
    x = np.linspace(-0.5, 0.5, scene.width, dtype=np.float32)[None, :] * math.cos(ground.angle)
    y = np.linspace(-0.5, 0.5, scene.height, dtype=np.float32)[:, None] * math.sin(ground.angle)
    light_HW = 1.0 + ground.gradient * (x + y)
    noise_HW = np.zeros((scene.height, scene.width), np.float32)
    if ground.blotches:
        coarse = Image.fromarray(rng.uniform(-ground.blotches, ground.blotches, (5, 5)).astype(np.float32))
        noise_HW += np.asarray(coarse.resize((scene.width, scene.height), Image.Resampling.BICUBIC))
    if ground.grain:
        noise_HW += ground.grain * rng.standard_normal(noise_HW.shape, dtype=np.float32)
    base_C = np.array(BACKGROUNDS[ground.name], np.float32)
    pixels_HWC = np.clip(base_C * light_HW[:, :, None] + noise_HW[:, :, None], 0, 255)
    return Image.fromarray(pixels_HWC.astype(np.uint8))


def render(scene: Scene) -> Image.Image:
    """Returns the scene as an RGB image of `scene.width` × `scene.height` pixels."""
    image = _ground(scene)
    for thing in scene.objects:
        mask, left, top = object_mask(thing)
        image.paste(_fill(thing, mask.width), (left, top), mask)
    return image


def encode(image: Image.Image, format: str, quality: int) -> bytes:
    """Returns the bytes of a JPEG, PNG or WEBP file ("jpeg", "png", "webp"); `quality` is 1–100, unused for PNG."""
    options = {"png": {"compress_level": 1}, "webp": {"quality": quality, "method": 0}, "jpeg": {"quality": quality}}
    return save(image, format, **options[format])


def save(image: Image.Image, format: str, **options: object) -> bytes:
    """Returns the bytes of a file that Pillow writes with these options."""
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()
