"""English captions of scenes: each names the colour and shape of every object, in varying words."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING

from clip_data.demo.data import load

if TYPE_CHECKING:
    from clip_data.demo.scenes import SceneObject

_WORDS = load("captions.toml")
NOUNS: dict[str, list[tuple[str, str]]] = {shape: list(map(tuple, nouns)) for shape, nouns in _WORDS["nouns"].items()}
"""(singular, plural) of the nouns of each shape; the first is its class name"""


def write_caption(
    rng: Random, layout: str, objects: Sequence[SceneObject], ground: str, width: int, height: int
) -> str:
    """Returns a true sentence or phrase about 1–3 objects; `layout` and the objects' order are those of the scene."""
    text = _single(rng, objects[0], ground, width, height) if len(objects) == 1 else _several(rng, layout, objects)
    if rng.random() < 0.6:
        text = text[0].upper() + text[1:]
    return text + rng.choice((".", ""))


def _single(rng: Random, thing: SceneObject, ground: str, width: int, height: int) -> str:
    place = _place(rng, thing.x / width - 0.5, thing.y / height - 0.5)
    about = rng.random()
    kind = "ground" if about < 0.15 else "place" if about < 0.4 and place else "plain"
    frame: str = rng.choice(_WORDS["single"][kind])
    phrase = _phrase(rng, thing)
    is_clause = rng.random() < 0.06
    with_article = f"{_article(_noun(rng, thing.shape))} that is {thing.color}" if is_clause else _article(phrase)
    counted = f"{rng.choice(('one', 'a single'))} {phrase}"
    return frame.format(a=with_article, one=counted, place=place, ground=f"a {ground} background")


def _several(rng: Random, layout: str, objects: Sequence[SceneObject]) -> str:
    kinds, number = [(o.color, o.shape) for o in objects], str(len(objects))
    opening: str = rng.choice(_WORDS["openings"])
    if len(set(kinds)) == 1:
        many = f"{kinds[0][0]} {_noun(rng, kinds[0][1], plural=True)}"
        frame: str = rng.choice(_WORDS["alike"][number][layout])
        return opening + frame.format(all=f"{'two' if number == '2' else 'three'} {many}", many=many)
    if len(set(kinds)) < len(objects):
        color, shape = twice = next(kind for kind in kinds if kinds.count(kind) == 2)
        other = next(o for o, kind in zip(objects, kinds, strict=True) if kind != twice)
        parts = [f"two {color} {_noun(rng, shape, plural=True)}", _article(_phrase(rng, other))]
        rng.shuffle(parts)
        return opening + rng.choice((" and ", " with ")).join(parts)
    if number == "2" and kinds[0][1] == kinds[1][1] and rng.random() < 0.3:
        return f"{opening}two {_noun(rng, kinds[0][1], plural=True)}, one {kinds[0][0]} and one {kinds[1][0]}"
    phrases = [_article(_phrase(rng, o)) for o in objects]
    frame = rng.choice(_WORDS[number]["any" if rng.random() < 0.35 else layout])
    if frame.startswith(("on ", "from ")):
        opening = ""
    return opening + frame.format(**dict(zip("abc", phrases, strict=False)))


def _phrase(rng: Random, thing: SceneObject) -> str:
    """Returns "large striped red circle": size and texture now and then."""
    words = []
    for adjective, share in ((thing.size_word, 0.35), (thing.texture, 0.5)):
        if adjective in _WORDS["adjectives"] and rng.random() < share:
            words.append(rng.choice(_WORDS["adjectives"][adjective]))
    return " ".join([*words, thing.color, _noun(rng, thing.shape)])


def _noun(rng: Random, shape: str, plural: bool = False) -> str:
    # Synonyms are rare: the class names must be learnt from about 3,000 captions.
    return NOUNS[shape][-1 if rng.random() < 0.08 else 0][plural]


def _article(phrase: str) -> str:
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def _place(rng: Random, right: float, down: float) -> str:
    """Returns where a centre lies, or "" where no word is clearly true; offsets are shares of width and height."""
    if abs(right) < 0.05 and abs(down) < 0.05:
        return rng.choice(("in the middle", "in the centre"))
    vertical = "top" if down < -0.1 else "bottom" if down > 0.1 else "" if abs(down) < 0.06 else None
    horizontal = "left" if right < -0.1 else "right" if right > 0.1 else "" if abs(right) < 0.06 else None
    if vertical is None or horizontal is None or not (vertical or horizontal):
        return ""
    if vertical and horizontal:
        return f"{rng.choice(('at', 'in'))} the {vertical} {horizontal}"
    return f"at the {vertical}" if vertical else f"on the {horizontal}"
