"""The command `clip-eval`. Each sub-command is a module of clip_eval.commands, loaded when it is used."""

from collections.abc import Sequence
from typing import NoReturn

from clip_core.cli import run_commands

COMMANDS = {
    "run": "evaluate a model with benchmarks: zero-shot classification, retrieval, or your own",
    "report": "write one self-contained HTML file about a dataset, a training run and its evaluation",
}


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Runs the command and exits with 0, or with 2 after an error of one line."""
    run_commands("clip_eval", COMMANDS, "Benchmarks of a trained model, and reports.", args)


if __name__ == "__main__":
    main()
