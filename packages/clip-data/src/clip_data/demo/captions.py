"""English captions of scenes: each names the colour and shape of every object, in varying words."""

import random
from collections.abc import Sequence
from typing import Protocol

# The first noun of a shape is its class name.
NOUNS: dict[str, tuple[tuple[str, str], ...]] = {
    "circle": (("circle", "circles"), ("disc", "discs")),
    "square": (("square", "squares"), ("box", "boxes")),
    "triangle": (("triangle", "triangles"),),
    "star": (("star", "stars"),),
    "heart": (("heart", "hearts"), ("love heart", "love hearts")),
    "cross": (("cross", "crosses"), ("plus sign", "plus signs")),
    "ring": (("ring", "rings"), ("hoop", "hoops")),
    "crescent": (("crescent", "crescents"), ("crescent moon", "crescent moons")),
}

_SIZE_WORDS = {"large": ("large", "big"), "small": ("small", "little")}
_TEXTURE_WORDS = {"striped": ("striped",), "dotted": ("dotted", "spotted"), "checkered": ("checkered",)}

_SINGLE = (
    "{a}",
    "{a}",
    "{a}",
    "a picture of {a}",
    "an image of {a}",
    "a drawing of {a}",
    "an illustration of {a}",
    "a simple picture of {a}",
    "a picture showing {a}",
    "this is {a}",
    "here is {a}",
    "there is {a}",
    "just {a}",
    "{a} and nothing else",
    "{one}",
    "a picture of {one}",
    "a picture with {one}",
    "there is {one}",
)
_SINGLE_GROUND = ("{a} on {ground}", "{a} against {ground}", "{a} in front of {ground}", "{ground} with {a}")
_SINGLE_PLACE = ("{a} {place}", "{place} there is {a}", "a picture with {a} {place}", "{one} {place}")

_PAIR_ANY = ("{a} and {b}", "{b} and {a}", "{a} next to {b}", "{b} next to {a}", "{a} beside {b}", "{b} with {a}")
_PAIR = {
    "row": (
        "{a} to the left of {b}",
        "{a} left of {b}",
        "{b} to the right of {a}",
        "{b} right of {a}",
        "{a} on the left and {b} on the right",
        "on the right {b}, on the left {a}",
    ),
    "column": (
        "{a} above {b}",
        "{a} over {b}",
        "{b} below {a}",
        "{b} under {a}",
        "{a} at the top and {b} at the bottom",
        "{b} beneath {a}",
    ),
}
_PAIR_ALIKE = {
    "row": ("{all}", "a pair of {many}", "{all} side by side", "{all} next to each other"),
    "column": ("{all}", "a pair of {many}", "{all}, one above the other", "{all} on top of each other"),
}
_TRIPLE_ANY = ("{a}, {b} and {c}", "{c}, {a} and {b}", "{b}, {c} and {a}", "{c} with {b} and {a}")
_TRIPLE = {
    "row": ("{b} between {a} and {c}", "from left to right {a}, {b} and {c}", "{a} left of {b} and {c}"),
    "column": ("{b} between {a} and {c}", "from top to bottom {a}, {b} and {c}", "{a} above {b} and {c}"),
    "peak": ("{a} above {b} and {c}", "{b} and {c} below {a}", "{b} and {c} under {a}"),
}
_TRIPLE_ALIKE = {
    "row": ("{all}", "{all} in a row", "{all} side by side", "a group of {all}"),
    "column": ("{all}", "{all} in a column", "{all} on top of each other", "a group of {all}"),
    "peak": ("{all}", "a group of {all}", "{all} together"),
}
_OPENINGS = ("", "", "", "a picture of ", "an image of ", "a drawing of ", "a picture with ")


class Described(Protocol):
    """What a caption may say about an object."""

    @property
    def shape(self) -> str: ...
    @property
    def color(self) -> str: ...
    @property
    def texture(self) -> str: ...
    @property
    def size_word(self) -> str: ...
    @property
    def x(self) -> float: ...
    @property
    def y(self) -> float: ...


def write_caption(
    rng: random.Random, layout: str, objects: Sequence[Described], ground: str, width: int, height: int
) -> str:
    """One true sentence or phrase about 1–3 objects; `layout` and the objects' order are those of the scene."""
    text = _single(rng, objects[0], ground, width, height) if len(objects) == 1 else _several(rng, layout, objects)
    if rng.random() < 0.6:
        text = text[0].upper() + text[1:]
    return text + rng.choice((".", ""))


def _single(rng: random.Random, thing: Described, ground: str, width: int, height: int) -> str:
    place = _place(rng, thing.x / width - 0.5, thing.y / height - 0.5)
    about = rng.random()
    if about < 0.15:
        frame = rng.choice(_SINGLE_GROUND)
    elif about < 0.4 and place:
        frame = rng.choice(_SINGLE_PLACE)
    else:
        frame = rng.choice(_SINGLE)
    phrase = _adjectives(rng, thing) + _noun(rng, thing.shape, 1)
    if rng.random() < 0.06:
        with_article = f"{_article(_noun(rng, thing.shape, 1))} that is {thing.color}"
    else:
        with_article = _article(phrase)
    counted = f"{rng.choice(('one', 'a single'))} {phrase}"
    return frame.format(a=with_article, one=counted, place=place, ground=f"a {ground} background")


def _several(rng: random.Random, layout: str, objects: Sequence[Described]) -> str:
    kinds = [(o.color, o.shape) for o in objects]
    opening = rng.choice(_OPENINGS)
    if len(set(kinds)) == 1:
        color, shape = kinds[0]
        many = f"{color} {_noun(rng, shape, 2)}"
        count = "two" if len(objects) == 2 else "three"
        frames = (_PAIR_ALIKE if len(objects) == 2 else _TRIPLE_ALIKE)[layout]
        return opening + rng.choice(frames).format(all=f"{count} {many}", many=many)
    if len(set(kinds)) < len(objects):
        twice = next(kind for kind in kinds if kinds.count(kind) == 2)
        other = next(o for o, kind in zip(objects, kinds, strict=True) if kind != twice)
        pair = f"two {twice[0]} {_noun(rng, twice[1], 2)}"
        parts = [pair, _article(_adjectives(rng, other) + _noun(rng, other.shape, 1))]
        rng.shuffle(parts)
        return opening + rng.choice((" and ", " with ")).join(parts)
    if len(objects) == 2 and kinds[0][1] == kinds[1][1] and rng.random() < 0.3:
        return f"{opening}two {_noun(rng, kinds[0][1], 2)}, one {kinds[0][0]} and one {kinds[1][0]}"
    phrases = [_article(_adjectives(rng, o) + _noun(rng, o.shape, 1)) for o in objects]
    if len(objects) == 2:
        frame = rng.choice(_PAIR_ANY if rng.random() < 0.35 else _PAIR[layout])
    else:
        frame = rng.choice(_TRIPLE_ANY if rng.random() < 0.35 else _TRIPLE[layout])
    if opening and frame.startswith(("on ", "from ")):
        opening = ""
    return opening + frame.format(**dict(zip("abc", phrases, strict=False)))


def _adjectives(rng: random.Random, thing: Described) -> str:
    words = []
    if thing.size_word and rng.random() < 0.35:
        words.append(rng.choice(_SIZE_WORDS[thing.size_word]))
    if thing.texture in _TEXTURE_WORDS and rng.random() < 0.5:
        words.append(rng.choice(_TEXTURE_WORDS[thing.texture]))
    return " ".join([*words, thing.color]) + " "


def _noun(rng: random.Random, shape: str, number: int) -> str:
    nouns = NOUNS[shape]
    # Synonyms are rare: the class names must be learnt from about 3,000 captions.
    noun = nouns[-1] if rng.random() < 0.08 else nouns[0]
    return noun[0] if number == 1 else noun[1]


def _article(phrase: str) -> str:
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def _place(rng: random.Random, right: float, down: float) -> str:
    """Where a centre lies, or "" where no word is clearly true; offsets as shares of width and height."""
    if abs(right) < 0.05 and abs(down) < 0.05:
        return rng.choice(("in the middle", "in the centre"))
    vertical = "top" if down < -0.1 else "bottom" if down > 0.1 else "" if abs(down) < 0.06 else None
    horizontal = "left" if right < -0.1 else "right" if right > 0.1 else "" if abs(right) < 0.06 else None
    if vertical is None or horizontal is None or not (vertical or horizontal):
        return ""
    if vertical and horizontal:
        return f"{rng.choice(('at', 'in'))} the {vertical} {horizontal}"
    return f"at the {vertical}" if vertical else f"on the {horizontal}"
