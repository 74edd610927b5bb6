"""Configs that come in several kinds: the key `kind` of a table chooses one."""

from dataclasses import dataclass, field

import pytest

from clip_core.cli import parse
from clip_core.config import ConfigError, Variant, fingerprint, from_dict, to_dict
from clip_core.registry import Registry

KINDS = Registry("shape", {"square": f"{__name__}:Square"})


@dataclass(frozen=True, kw_only=True)
class Shape(Variant):
    KINDS = KINDS
    DEFAULT = "square"
    color: str = "red"


@dataclass(frozen=True, kw_only=True)
class Square(Shape):
    side: int = 1


@KINDS.add("circle")
@dataclass(frozen=True, kw_only=True)
class Circle(Shape):
    radius: float


@KINDS.add("no-shape")
@dataclass(frozen=True, kw_only=True)
class Other:
    side: int = 1


@dataclass(frozen=True, kw_only=True)
class Drawing:
    main: Shape = field(default_factory=Square)
    others: tuple[Shape, ...] = ()


@pytest.fixture(autouse=True)
def named(monkeypatch):
    # This file is no module that can be imported by name.
    monkeypatch.setitem(KINDS._known, "square", Square)


def test_a_table_becomes_the_class_of_its_kind_and_back():
    data = {"main": {"kind": "circle", "radius": 2, "color": "blue"}, "others": [{}, {"kind": "square", "side": 3}]}
    drawing = from_dict(Drawing, data)
    assert drawing == Drawing(main=Circle(radius=2.0, color="blue"), others=(Square(), Square(side=3)))
    assert to_dict(drawing)["others"] == [
        {"kind": "square", "color": "red", "side": 1},
        {"kind": "square", "color": "red", "side": 3},
    ]
    assert from_dict(Drawing, to_dict(drawing)) == drawing


def test_the_kind_is_part_of_the_fingerprint():
    assert fingerprint(Square()) != fingerprint({"color": "red", "side": 1})


def test_flags_set_the_fields_of_the_kind_in_any_order():
    words = ["--main.radius", "2", "--others.0.side", "3", "--main.kind", "circle"]
    drawing = parse(Drawing, words, prog="draw", description="")
    assert drawing == Drawing(main=Circle(radius=2.0), others=(Square(side=3),))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"main": {"kind": "squar"}}, "x.toml: main.kind = 'squar': there is no shape 'squar'; did you mean 'square'?"),
        ({"main": {"kind": 3}}, "x.toml: main.kind = 3 must name a config class that extends Shape"),
        ({"main": {"kind": "no-shape"}}, "x.toml: main.kind = 'no-shape' must name a config class that extends Shape"),
        ({"main": {"kind": "circle"}}, "x.toml: missing key main.radius"),
        ({"main": {"side": 1, "radius": 2}}, "x.toml: unknown key main.radius; valid keys: kind, color, side"),
    ],
)
def test_what_does_not_fit_is_named(data, message):
    with pytest.raises(ConfigError, match=f"^{message.replace('?', '[?]')}$"):
        from_dict(Drawing, data, "x.toml")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--main.kind", "circel"], "draw: main.kind = 'circel': there is no shape 'circel'; did you mean 'circle'"),
        (["--main.radius", "2"], "draw: unknown flag --main.radius"),
        (["--others.0.kind", "circle"], r"draw: missing key others\[0\].radius"),
    ],
)
def test_flags_that_do_not_fit_are_named(words, message):
    with pytest.raises(ConfigError, match=message):
        parse(Drawing, words, prog="draw", description="")
