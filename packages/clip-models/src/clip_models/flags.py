"""Flags of a command line to the dataclass that they fill."""

import contextlib
import io
import re
from collections.abc import Sequence
from typing import Any

from clip_models.errors import ClipModelsError


def parse(form: type, prog: str, description: str, args: Sequence[str]) -> Any:
    """Returns a `form` filled from the flags; what tyro prints about a wrong one becomes a ClipModelsError of one line.

    --help prints the flags and exits with 0.
    """
    import tyro

    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            return tyro.cli(
                form, prog=prog, description=description, args=list(args), config=(tyro.conf.OmitArgPrefixes,)
            )
    except SystemExit as stop:
        if not stop.code:  # --help
            raise
    title, _, body = printed.getvalue().strip().partition("\n")
    words = re.sub(r"[│╭╮╰╯─]|-{4,}", " ", body or title).partition("For full helptext")[0].split()
    raise ClipModelsError(f"{' '.join(words)} ('{prog} --help' lists the flags)")
