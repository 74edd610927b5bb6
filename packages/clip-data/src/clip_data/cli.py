"""The command `clip-data`. Each sub-command is a module of clip_data.commands, imported on use."""

import os
from collections.abc import Sequence
from typing import Any, NoReturn

from clip_core.cli import run_commands
from clip_core.store import Store

COMMANDS = {
    "plan": "cut tables of URLs into units of work",
    "acquire": "fetch, decode, resize and shard the images",
    "score": "add columns computed from captions and images",
    "select": "choose rows by an expression over columns, and drop duplicates",
    "takedown": "exclude samples permanently, by uid, URL or key",
    "status": "show progress and rejections, from any terminal",
    "verify": "check files against the commit records",
}
ABOUT = """\
From tables of URLs to shards, scores and selections. A command that is run again continues.
Exit code 0 means done; 2 means a mistake or a result without rows, and one line gives the reason."""


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Runs the command; exits with 0, or with 2 after an error of one line."""
    run_commands("clip_data", COMMANDS, ABOUT, args, adjust=_make_absolute)


def _make_absolute(config: Any) -> None:
    if config.dataset and Store(config.dataset).local and "://" not in config.dataset:  # workers run in other folders
        object.__setattr__(config, "dataset", os.path.abspath(os.path.expanduser(config.dataset)))
