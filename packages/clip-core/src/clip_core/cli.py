"""The command line of every package and script: sub-commands, recipes with flags, one-line errors, exit codes.

This is the only module that imports tyro, which prints the help. What a list of commands does not require is imported
on use.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any, NoReturn, TypeVar

from clip_core.errors import ClipError

T = TypeVar("T")


def run_commands(
    package: str,
    commands: Mapping[str, str],
    about: str,
    args: Sequence[str] | None = None,
    *,
    adjust: Callable[[Any], None] = lambda config: None,
    quiet: Callable[[ClipError], bool] = lambda error: False,
) -> NoReturn:
    """Runs the sub-command that `args` (or sys.argv) names, and exits.

    `commands` maps each module of `<package>.commands` to a line of help. Such a module has a dataclass `Config`, which
    the flags fill and `adjust` may change, and `run(config)`, which returns the exit code. See `run_cli` for `quiet`.
    """
    prog = package.replace("_", "-")

    def main() -> int | None:
        name, *rest = (sys.argv[1:] if args is None else args) or ["--help"]
        if name in ("-h", "--help"):
            width = max(map(len, commands))
            lines = "\n".join(f"  {command:<{width}}  {text}" for command, text in commands.items())
            print(f"usage: {prog} COMMAND [recipe.toml] [--flags]\n\n{about}\n\n{lines}\n")
            print(f"'{prog} COMMAND --help' lists the flags of a command.")
            return 0
        if name not in commands:
            from clip_core.suggest import did_you_mean

            hint = did_you_mean(name, commands, f"the commands are {', '.join(commands)}")
            raise ClipError(f"{prog} has no command {name!r}; {hint}")
        command: Any = import_module(f"{package}.commands.{name.replace('-', '_')}")
        config = parse(command.Config, rest, prog=f"{prog} {name}", description=commands[name])
        adjust(config)
        status: int | None = command.run(config)
        return status

    run_cli(main, quiet)


def run_cli(main: Callable[[], int | None], quiet: Callable[[ClipError], bool] = lambda error: False) -> NoReturn:
    """Runs an entry point and exits with its code. A ClipError is one line and code 2.

    `quiet` returns whether another process prints an error.
    """
    code: int | str | None = 0
    try:
        code = main()
    except ClipError as error:
        if not quiet(error):
            print(f"error: {error}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("interrupted: run the same command again to continue", file=sys.stderr)
        code = 130
    except BrokenPipeError:
        code = 0
    except SystemExit as stop:  # --help
        code = stop.code
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # the reader is gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code or 0)


def parse(cls: type[T], args: Sequence[str], *, prog: str, description: str) -> T:
    """Builds `cls` from `[recipe.toml|recipe.json] [--dotted.flags …]`; a flag sets one field of the recipe.

    A command with a positional field takes its values in place of a recipe. Raises ConfigError, of one line.
    """
    from clip_core.config import ConfigError, from_dict, leaves, load_file
    from clip_core.flags import positional, put_flags

    words, place = list(args), positional(cls)
    recipe = words.pop(0) if not place and words and not words[0].startswith("-") else None
    data = load_file(recipe) if recipe is not None else {}
    if "--help" in words or "-h" in words:
        print_help(cls, None if recipe is None else from_dict(cls, data, recipe), prog, description)
    try:
        put_flags(cls, data, words)
        missing = [name for name, (_, is_missing) in leaves(cls, data).items() if is_missing and recipe is None]
    except ValueError as error:
        raise ConfigError(f"{prog}: {error} ('{prog} --help' lists the flags)") from error
    if missing:
        flags = " ".join(name.upper() if name == place else f"--{name.replace('_', '-')}" for name in missing)
        raise ConfigError(f"{prog} needs {flags if place else f'a recipe (a .toml file) or the flags {flags}'}")
    return from_dict(cls, data, recipe or prog)


def print_help(cls: type, default: Any, prog: str, description: str) -> None:
    """Prints the fields of `cls` as flags, with the values of `default` if it is not None, and exits with 0."""
    import json
    from dataclasses import field, fields, make_dataclass
    from typing import Annotated, get_type_hints

    import tyro

    from clip_core.config import to_dict
    from clip_core.flags import example, is_toml, positional

    registry = tyro.constructors.ConstructorRegistry()

    @registry.primitive_rule
    def toml(info: Any) -> Any:
        if not is_toml(info.type):
            return None
        return tyro.constructors.PrimitiveConstructorSpec(
            nargs=1,
            metavar=f"'{example(info.type)}'",
            instance_from_str=list,
            is_instance=lambda _: True,
            str_from_instance=lambda value: [json.dumps(to_dict(value))],
        )

    place = positional(cls)
    if place:
        (kept,) = (f for f in fields(cls) if f.name == place)
        hint = Annotated[get_type_hints(cls)[place], tyro.conf.Positional]  # type: ignore[valid-type]
        cls = make_dataclass(cls.__name__, [(place, hint, field(default=kept.default))], bases=(cls,), frozen=True)
    with registry:
        tyro.cli(
            cls,
            args=["--help"],
            prog=prog if place else f"{prog} [recipe.toml]",
            description=description,
            config=(tyro.conf.FlagConversionOff, tyro.conf.AvoidSubcommands),
            default=tyro.MISSING_NONPROP if default is None else default,
        )
