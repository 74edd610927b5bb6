"""What is in a scene: objects, layout, background and caption, drawn from (seed, index) alone."""

import math
import random
from dataclasses import dataclass

from clip_data.demo.captions import write_caption

RGB = tuple[int, int, int]

SHAPES = ("circle", "square", "triangle", "star", "heart", "cross", "ring", "crescent")

COLORS: dict[str, RGB] = {
    "red": (214, 34, 40),
    "green": (44, 160, 62),
    "blue": (38, 84, 214),
    "yellow": (247, 222, 48),
    "purple": (142, 48, 172),
    "orange": (247, 136, 24),
    "white": (248, 248, 248),
    "black": (20, 20, 22),
}

CLASS_NAMES = tuple(f"{color} {shape}" for color in COLORS for shape in SHAPES)
"""The 64 classes of the zero-shot task, in a fixed order; a scene's `label` is one of them or ""."""

PROMPT_TEMPLATES = (
    "{}",
    "one {}.",
    "a picture of one {}.",
    "a large {}.",
    "a small {}.",
    "this is a {}.",
    "an image of a {}.",
)

TEXTURES = ("plain", "striped", "dotted", "checkered")

# No name here is also an object's colour, so a caption may name both.
BACKGROUNDS: dict[str, RGB] = {
    "light grey": (204, 207, 211),
    "grey": (142, 144, 148),
    "dark grey": (74, 77, 82),
    "beige": (224, 209, 180),
    "cream": (243, 236, 214),
    "brown": (104, 78, 60),
    "teal": (52, 124, 126),
    "turquoise": (128, 208, 206),
    "pink": (238, 182, 198),
    "lavender": (202, 192, 228),
    "mint": (190, 226, 202),
    "navy": (28, 36, 68),
}

# Euclidean RGB distance below which a shape starts to sink into the ground it stands on (judged on contact sheets).
MIN_CONTRAST = 118.0


@dataclass(frozen=True, kw_only=True)
class SceneObject:
    """One shape; lengths in pixels of the rendered picture, origin at its top left."""

    shape: str
    """One of SHAPES."""
    color: str
    """One of the names in COLORS."""
    rgb: RGB
    """The named colour, slightly varied."""
    texture: str
    """One of TEXTURES."""
    x: float
    """Centre, from the left."""
    y: float
    """Centre, from the top."""
    size: float
    """Diameter."""
    rotation: float
    """Degrees, clockwise."""
    mirrored: bool
    """Flipped left to right before the rotation."""
    size_word: str
    """"large", "small" or "" when the size is in between."""


@dataclass(frozen=True, kw_only=True)
class Background:
    """The ground: one named colour with a soft gradient, blotches and grain."""

    name: str
    """One of the names in BACKGROUNDS."""
    gradient: float
    """Relative change of brightness from one edge to the other."""
    angle: float
    """Direction of the gradient in radians."""
    blotches: float
    """Amplitude of large soft spots, in 8-bit levels."""
    grain: float
    """Standard deviation of the pixel noise, in 8-bit levels."""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A picture before it is drawn, with its caption."""

    seed: int
    """Seed of the collection."""
    index: int
    """Number of the scene within the collection."""
    width: int
    """Pixels."""
    height: int
    """Pixels."""
    format: str
    """File format: "jpeg", "png" or "webp"."""
    quality: int
    """Quality of the lossy formats, 1–100."""
    noise_seed: int
    """Seed of blotches and grain."""
    layout: str
    """"single", "row" (objects left to right), "column" (top to bottom) or "peak" (one above two)."""
    background: Background
    """What the objects stand on."""
    objects: tuple[SceneObject, ...]
    """One to three, in the order of the layout, never overlapping."""
    caption: str
    """English; names colour and shape of every object."""
    label: str
    """Class name when there is exactly one object, else ""."""


def scene(seed: int, index: int) -> Scene:
    """The scene number `index` of the collection `seed`: the same in every process and on every machine."""
    rng = random.Random(f"scene {seed} {index}")
    short = rng.randrange(96, 145)
    long = min(160, round(short * rng.choice((1.0, 1.0, 1.15, 1.33))))
    width, height = (long, short) if rng.random() < 0.6 else (short, long)
    count = rng.choices((1, 2, 3), weights=(75, 16, 9))[0]
    layout, objects = _place(rng, count, width, height)
    background = _background(rng, objects)
    return Scene(
        seed=seed,
        index=index,
        width=width,
        height=height,
        format=rng.choices(("jpeg", "png", "webp"), weights=(70, 15, 15))[0],
        quality=rng.randrange(82, 94),
        noise_seed=rng.getrandbits(32),
        layout=layout,
        background=background,
        objects=objects,
        caption=write_caption(rng, layout, objects, background.name, width, height),
        label=f"{objects[0].color} {objects[0].shape}" if count == 1 else "",
    )


def _place(rng: random.Random, count: int, width: int, height: int) -> tuple[str, tuple[SceneObject, ...]]:
    """Objects inside the central square, so that a centre crop keeps them whole."""
    if count == 1:
        size = rng.uniform(0.5, 0.76)
        reach = 0.5 - 0.56 * size
        centres = [(rng.uniform(-reach, reach), rng.uniform(-reach, reach))]
        layout, sizes, large, small = "single", [size], 0.68, 0.58
    elif count == 2:
        layout = rng.choice(("row", "column"))
        centres = [(-0.25, 0.0), (0.25, 0.0)]
        sizes, large, small = [rng.uniform(0.28, 0.44) for _ in range(2)], 0.40, 0.33
    else:
        layout = rng.choice(("row", "column", "peak"))
        centres = [(0.0, -0.24), (-0.25, 0.24), (0.25, 0.24)] if layout == "peak" else [(-0.33, 0), (0, 0), (0.33, 0)]
        sizes, large, small = [rng.uniform(0.25, 0.4 if layout == "peak" else 0.29) for _ in range(3)], 0.37, 0.0
    if layout == "column":
        centres = [(y, x) for x, y in centres]
    if count > 1:
        spread = 0.02 if count == 3 else 0.04
        centres = [(x + rng.uniform(-spread, spread), y + rng.uniform(-spread, spread)) for x, y in centres]
    kinds = _kinds(rng, count)
    short = min(width, height)
    return layout, tuple(
        SceneObject(
            shape=shape,
            color=color,
            rgb=_vary(rng, COLORS[color]),
            texture=rng.choices(TEXTURES, weights=(76, 8, 8, 8))[0],
            x=width / 2 + x * short,
            y=height / 2 + y * short,
            size=size * short,
            rotation=rng.uniform(-12, 12),
            mirrored=rng.random() < 0.5,
            size_word="large" if size > large else "small" if size < small else "",
        )
        for (shape, color), (x, y), size in zip(kinds, centres, sizes, strict=True)
    )


def _kinds(rng: random.Random, count: int) -> list[tuple[str, str]]:
    """(shape, colour) of each object; sometimes all alike, sometimes two alike among three."""
    kinds = [(rng.choice(SHAPES), rng.choice(tuple(COLORS))) for _ in range(count)]
    alike = rng.random()
    if count > 1 and alike < 0.3:
        return [kinds[0]] * count
    if count == 3 and alike < 0.6:
        pair = [kinds[0], kinds[0], kinds[2]]
        rng.shuffle(pair)
        return pair
    return kinds


def _vary(rng: random.Random, rgb: RGB) -> RGB:
    red, green, blue = (min(255, max(0, level + rng.randint(-10, 10))) for level in rgb)
    return red, green, blue


def _background(rng: random.Random, objects: tuple[SceneObject, ...]) -> Background:
    contrast = {name: min(math.dist(rgb, o.rgb) for o in objects) for name, rgb in BACKGROUNDS.items()}
    visible = [name for name, distance in contrast.items() if distance >= MIN_CONTRAST]
    return Background(
        name=rng.choice(visible or [max(contrast, key=lambda name: contrast[name])]),
        gradient=rng.uniform(0.0, 0.22),
        angle=rng.uniform(0.0, 2 * math.pi),
        blotches=rng.choice((0.0, 4.0, 8.0)),
        grain=rng.choice((0.0, 2.0, 4.0, 6.0)),
    )
