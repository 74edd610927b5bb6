"""What is in a scene: objects, layout, background and caption, drawn from (seed, index) alone."""

import math
import random
from dataclasses import dataclass

from clip_data.demo.captions import NOUNS, write_caption
from clip_data.demo.data import load

RGB = tuple[int, int, int]

_DATA = load("scenes.toml")
SHAPES = tuple(NOUNS)
COLORS: dict[str, RGB] = {name: tuple(rgb) for name, rgb in _DATA["colors"].items()}
BACKGROUNDS: dict[str, RGB] = {name: tuple(rgb) for name, rgb in _DATA["backgrounds"].items()}
CLASS_NAMES = tuple(f"{color} {shape}" for color in COLORS for shape in SHAPES)
"""The 64 classes of the zero-shot benchmark, in a fixed order; a scene's `label` is one of them or ""."""
PROMPT_TEMPLATES = tuple(_DATA["prompt_templates"])

# Euclidean RGB distance below which a shape is hard to see on its background (judged on contact sheets).
MIN_CONTRAST = 118.0


@dataclass(frozen=True, kw_only=True)
class SceneObject:
    """One shape; lengths in pixels of the rendered image, origin at its top left."""

    shape: str  # one of SHAPES
    color: str  # a name in COLORS
    rgb: RGB  # the named colour, slightly varied
    texture: str  # plain, striped, dotted or checkered
    x: float  # of the centre, from the left
    y: float  # of the centre, from the top
    size: float  # diameter
    rotation: float  # degrees, clockwise
    mirrored: bool  # flipped left to right before the rotation
    size_word: str  # "large", "small", or "" for sizes in between


@dataclass(frozen=True, kw_only=True)
class Background:
    """One named colour with a soft gradient, blotches and grain."""

    name: str  # in BACKGROUNDS
    gradient: float  # relative change of brightness from one edge to the other
    angle: float  # direction of the gradient in radians
    blotches: float  # amplitude of large soft spots, in 8-bit levels
    grain: float  # standard deviation of the pixel noise, in 8-bit levels


@dataclass(frozen=True, kw_only=True)
class Scene:
    """An image before it is drawn, with its caption."""

    seed: int  # of the collection
    index: int  # within the collection
    width: int  # pixels
    height: int  # pixels
    format: str  # of the file: "jpeg", "png" or "webp"
    quality: int  # of the lossy formats, 1–100
    noise_seed: int  # of blotches and grain
    layout: str  # "single", "row" (left to right), "column" (top to bottom) or "peak" (one above two)
    background: Background
    objects: tuple[SceneObject, ...]  # one to three, in the order of the layout, never overlapping
    caption: str  # English; names colour and shape of every object
    label: str  # the class name of a single object, else ""


def scene(seed: int, index: int) -> Scene:
    """Returns the scene `index` of the collection `seed`: the same in every process and on every machine."""
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
    """Returns the layout and its objects, inside the central square, so that a centre crop keeps them whole."""
    layouts = _DATA["layouts"][str(count)]
    layout = rng.choice(tuple(layouts)) if count > 1 else "single"
    plan = layouts[layout]
    sizes = [rng.uniform(*plan["size"]) for _ in range(count)]
    spread = plan["spread"] if count > 1 else 0.5 - 0.56 * sizes[0]
    centres = [(x + rng.uniform(-spread, spread), y + rng.uniform(-spread, spread)) for x, y in plan["centres"]]
    kinds = _kinds(rng, count)
    short = min(width, height)
    return layout, tuple(
        SceneObject(
            shape=shape,
            color=color,
            rgb=_vary(rng, COLORS[color]),
            texture=rng.choices(_DATA["textures"], weights=(76, 8, 8, 8))[0],
            x=width / 2 + x * short,
            y=height / 2 + y * short,
            size=size * short,
            rotation=rng.uniform(-12, 12),
            mirrored=rng.random() < 0.5,
            size_word="large" if size > plan["large"] else "small" if size < plan["small"] else "",
        )
        for (shape, color), (x, y), size in zip(kinds, centres, sizes, strict=True)
    )


def _kinds(rng: random.Random, count: int) -> list[tuple[str, str]]:
    """Returns (shape, colour) of each object; sometimes all alike, sometimes two alike among three."""
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
