"""Sub-commands, positional values, booleans, and who prints an error."""

import sys
import types
from dataclasses import dataclass, field

import pytest

from clip_core import ClipError
from clip_core.cli import parse, run_commands
from clip_core.config import ConfigError


@dataclass(frozen=True, kw_only=True)
class Config:
    images: tuple[str, ...] = field(default=(), metadata={"positional": True})
    """what is looked at"""
    labels: tuple[str, ...] = ()
    """what may be seen"""
    output: str
    """where it goes"""
    json: bool = False
    """print JSON"""


def read(*words: str) -> Config:
    return parse(Config, words, prog="look", description="Looks.")


@pytest.mark.parametrize(
    "words",
    [
        ("a.jpg", "b.jpg", "--output", "out", "--json"),
        ("--output", "out", "a.jpg", "--json", "b.jpg"),
        ("--json", "true", "a.jpg", "b.jpg", "--output=out"),
        ("a.jpg", "--json", "True", "--output=out", "b.jpg"),
    ],
)
def test_positional_values_stand_anywhere(words):
    assert read(*words) == Config(images=("a.jpg", "b.jpg"), output="out", json=True)


def test_a_list_takes_every_word_that_follows():
    config = read("a.jpg", "--labels", "a cat", "a dog", "--output", "out", "--json", "false")
    assert config == Config(images=("a.jpg",), labels=("a cat", "a dog"), output="out")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("a.jpg",), "^look needs --output$"),
        (("--output", "out", "--output", "there"), "--output is given twice"),
        (("--outptu", "out"), "unknown flag --outptu; did you mean --output?"),
        (("--output",), "--output takes one value, and has none"),
    ],
)
def test_wrong_words_are_one_line(words, message):
    with pytest.raises(ConfigError, match=message):
        read(*words)


def test_one_positional_value_is_not_two():
    @dataclass(frozen=True, kw_only=True)
    class One:
        source: str = field(metadata={"positional": True})
        """where it comes from"""

    with pytest.raises(ConfigError, match=r"SOURCE takes one value, not 'a', 'b' "):
        parse(One, ["a", "b"], prog="look", description="")
    with pytest.raises(ConfigError, match=r"^look needs SOURCE$"):
        parse(One, [], prog="look", description="")


def test_the_help_shows_positional_values_and_every_text(capsys):
    with pytest.raises(SystemExit) as stop:
        read("--help")
    said = " ".join(capsys.readouterr().out.split())
    assert stop.value.code == 0
    assert "usage: look " in said
    assert "[recipe.toml]" not in said
    assert all(text in said for text in ("[STR", "what is looked at", "--labels", "what may be seen", "--json"))


@pytest.fixture
def tool(monkeypatch) -> types.ModuleType:
    """A package `some_tool` with the command `look`, which returns the number of its images."""
    look = types.ModuleType("some_tool.commands.look")
    look.Config = Config
    look.run = lambda config: len(config.images)
    for name in ("some_tool", "some_tool.commands"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, look.__name__, look)
    return look


def call(capsys, *args: str, **options) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        run_commands("some_tool", {"look": "looks at images"}, "Looks.", args, **options)
    return stop.value.code, *capsys.readouterr()


def test_commands_are_listed_run_and_corrected(tool, capsys):
    expected = "usage: some-tool COMMAND [recipe.toml] [--flags]\n\nLooks.\n\n  look  looks at images\n"
    for args in ((), ("-h",), ("--help",)):
        code, out, err = call(capsys, *args)
        assert (code, out.startswith(expected), err) == (0, True, "")
    assert call(capsys, "look", "a", "b", "--output", "x") == (2, "", "")
    assert call(capsys, "loko") == (2, "", "error: some-tool has no command 'loko'; did you mean look?\n")
    assert call(capsys, "zzz") == (2, "", "error: some-tool has no command 'zzz'; the commands are look\n")
    assert call(capsys, "look") == (2, "", "error: some-tool look needs --output\n")


def test_a_config_is_adjusted_and_an_error_may_be_left_to_another_process(tool, capsys):
    adjust = lambda config: object.__setattr__(config, "images", ("a",))  # noqa: E731
    assert call(capsys, "look", "--output", "x", adjust=adjust)[0] == 1
    seen: list[ClipError] = []
    assert call(capsys, "look", quiet=lambda error: not seen.append(error)) == (2, "", "")
    assert len(seen) == 1
