import hashlib
import io
import math
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from clip_data.demo import CLASS_NAMES, COLORS, PROMPT_TEMPLATES, SHAPES, encode, render, scene
from clip_data.demo.captions import NOUNS
from clip_data.demo.drawing import object_mask
from clip_data.demo.scenes import BACKGROUNDS

SOME = 600


@pytest.fixture(scope="module")
def scenes():
    return [scene(0, index) for index in range(SOME)]


def digest(seed: int, count: int) -> str:
    sha = hashlib.sha256()
    for index in range(count):
        drawn = scene(seed, index)
        sha.update(f"{drawn.caption}|{drawn.label}".encode())
        sha.update(encode(render(drawn), drawn.format, drawn.quality))
    return sha.hexdigest()


def test_scenes_are_the_same_in_another_process():
    program = "\n".join(
        [
            "import hashlib",
            "from clip_data.demo import encode, render, scene",
            "sha = hashlib.sha256()",
            "for index in reversed(range(12)): scene(3, index)",
            "for index in range(12):",
            "    drawn = scene(3, index)",
            "    sha.update(f'{drawn.caption}|{drawn.label}'.encode())",
            "    sha.update(encode(render(drawn), drawn.format, drawn.quality))",
            "print(sha.hexdigest())",
        ]
    )
    other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert other.stdout.strip() == digest(3, 12)


def test_seed_and_index_change_the_scene(scenes):
    assert len({(s.noise_seed, s.caption, s.objects) for s in scenes}) == SOME
    assert [scene(1, index).caption for index in range(20)] != [s.caption for s in scenes[:20]]


def test_class_names_are_all_pairs():
    assert len(set(CLASS_NAMES)) == 64
    assert set(CLASS_NAMES) == {f"{color} {shape}" for color in COLORS for shape in SHAPES}
    assert all(template.count("{}") == 1 for template in PROMPT_TEMPLATES)


def test_mixture_of_counts_layouts_textures_and_formats(scenes):
    share = sum(len(s.objects) == 1 for s in scenes) / SOME
    assert 0.7 < share < 0.8
    assert {len(s.objects) for s in scenes} == {1, 2, 3}
    assert {s.layout for s in scenes} == {"single", "row", "column", "peak"}
    assert {o.texture for s in scenes for o in s.objects} == {"plain", "striped", "dotted", "checkered"}
    assert {s.format for s in scenes} == {"jpeg", "png", "webp"}
    assert all(96 <= s.width <= 160 and 96 <= s.height <= 160 for s in scenes)
    assert len({s.caption for s in scenes}) > 0.9 * SOME


def test_label_only_for_single_objects(scenes):
    for drawn in scenes:
        if len(drawn.objects) == 1:
            assert drawn.label == f"{drawn.objects[0].color} {drawn.objects[0].shape}"
        else:
            assert drawn.label == ""


def test_captions_name_colour_and_shape_of_every_object_and_nothing_else(scenes):
    for drawn in scenes:
        text = drawn.caption.lower()
        for thing in drawn.objects:
            assert thing.color in text.split() or f"{thing.color} " in text or f"{thing.color}." in text, text
            assert any(singular in text for singular, _ in NOUNS[thing.shape]), (thing.shape, text)
        words = set(text.replace(".", "").replace(",", "").split())
        assert words & set(COLORS) == {o.color for o in drawn.objects}, text
        named = {shape for shape, nouns in NOUNS.items() if words & {n.split()[0] for pair in nouns for n in pair}}
        # "love heart" and "plus sign" begin with a word of their own, "crescent moon" with the class name.
        assert named == {o.shape for o in drawn.objects}, text
        assert "{" not in text


def test_words_of_place_relation_size_and_texture_are_true(scenes):
    relations = 0
    for drawn in scenes:
        text, things = drawn.caption.lower(), drawn.objects
        if len(things) == 1:
            right, down = things[0].x / drawn.width - 0.5, things[0].y / drawn.height - 0.5
            assert "left" not in text or right < -0.1
            assert "right" not in text or right > 0.1
            assert "top" not in text or down < -0.1
            assert "bottom" not in text or down > 0.1
            if "large" in text or "big" in text:
                assert things[0].size > 0.67 * min(drawn.width, drawn.height)
            if "small" in text or "little" in text:
                assert things[0].size < 0.59 * min(drawn.width, drawn.height)
        for word in ("striped", "checkered"):
            assert word not in text or word in {o.texture for o in things}
        # "A left of B": the object named first lies left; each relation has its own axis.
        for words, axis in (((" left of ", " to the left of "), "x"), ((" above ", " over "), "y")):
            found = [w for w in words if w in text and len(set((o.color, o.shape) for o in things)) == 2 == len(things)]
            if found:
                first = text.split(found[-1])[0]
                a, b = sorted(things, key=lambda o: getattr(o, axis))
                assert a.color in first
                assert any(singular in first for singular, _ in NOUNS[a.shape])
                assert getattr(a, axis) < getattr(b, axis) - 10
                relations += 1
    assert relations >= 5


def test_objects_stay_whole_in_the_central_square_and_apart(scenes):
    for drawn in scenes:
        short = min(drawn.width, drawn.height)
        taken = np.zeros((drawn.height, drawn.width), bool)
        for thing in drawn.objects:
            coverage = pasted_mask(drawn, thing)
            whole = np.asarray(object_mask(thing)[0]) > 127
            left, top = (drawn.width - short) // 2, (drawn.height - short) // 2
            inside = coverage[top : top + short, left : left + short]
            assert inside.sum() >= 0.97 * whole.sum()
            assert not (taken & coverage).any()
            taken |= coverage
        if len(drawn.objects) == 1:
            assert 0.5 <= drawn.objects[0].size / short <= 0.76


def pasted_mask(drawn, thing):
    mask, left, top = object_mask(thing)
    canvas = Image.new("L", (drawn.width, drawn.height), 0)
    canvas.paste(mask, (left, top))
    return np.asarray(canvas) > 127


def test_every_class_shows_its_own_colour():
    found: dict[str, int] = {}
    index = 0
    while len(found) < 64:
        drawn = scene(5, index)
        index += 1
        if not drawn.label or drawn.label in found:
            continue
        found[drawn.label] = drawn.index
        thing = drawn.objects[0]
        data = encode(render(drawn), drawn.format, drawn.quality)
        pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), np.float64)
        inside = pixels[pasted_mask(drawn, thing)].mean(0)
        nearest = min(COLORS, key=lambda name: math.dist(COLORS[name], inside))
        assert nearest == thing.color, (drawn.label, drawn.index, inside)
        ground = pixels[~pasted_mask(drawn, thing)].mean(0)
        assert math.dist(inside, ground) > 80, (drawn.label, drawn.index)
    assert index < 2000


def test_background_names_are_no_object_colours():
    assert not {word for name in BACKGROUNDS for word in name.split()} & set(COLORS)


@pytest.mark.parametrize("format", ["jpeg", "png", "webp"])
def test_encode_gives_the_asked_format(format):
    image = render(scene(0, 1))
    decoded = Image.open(io.BytesIO(encode(image, format, 85)))
    assert decoded.format == format.upper()
    assert decoded.size == image.size
