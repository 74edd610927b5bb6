"""The command `clip-data`. Each sub-command is a module of clip_data.commands, loaded when it is asked for."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from clip_core.suggest import did_you_mean
from clip_data.config import parse, run_cli
from clip_data.errors import ClipDataError
from clip_data.store import Store

COMMANDS = {
    "plan": "cut tables of URLs into units of work",
    "acquire": "fetch, decode, resize and shard the images",
    "score": "add columns computed from captions and images",
    "select": "choose rows by an expression over columns, and drop duplicates",
    "status": "show progress and rejections, from any terminal",
    "verify": "check files against the commit records",
}


def main(args: Sequence[str] | None = None) -> None:
    """The entry point; exits with 0, or with 2 after one line that says what is wrong."""
    run_cli(lambda: _main(sys.argv[1:] if args is None else list(args)))


def _main(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help"):
        print(_overview())
        return 0
    name, *rest = args
    if name not in COMMANDS:
        hint = did_you_mean(name, COMMANDS, f"the commands are {', '.join(COMMANDS)}")
        raise ClipDataError(f"clip-data has no command {name!r}; {hint}")
    command = import_module(f"clip_data.commands.{name}")
    config: Any = parse(command.Config, rest, prog=f"clip-data {name}", description=COMMANDS[name])
    if config.root and Store(config.root).local and "://" not in config.root:  # workers may run in another folder
        object.__setattr__(config, "root", os.path.abspath(os.path.expanduser(config.root)))
    return command.run(config)


def _overview() -> str:
    return "\n".join(
        [
            "usage: clip-data COMMAND [recipe.toml] [--flags]",
            "",
            "From tables of URLs to shards, scores and selections. A command that is run again continues.",
            "Exit code 0 means done; 2, after one line that says why, a mistake or an outcome without a single row.",
            "",
            *(f"  {name:<9} {text}" for name, text in COMMANDS.items()),
            "",
            "'clip-data COMMAND --help' lists the flags of a command.",
        ]
    )
