"""The command clip-eval."""

from __future__ import annotations

import sys

from clip_data.config import parse, run_cli
from clip_eval.errors import ClipEvalError

USAGE = """usage: clip-eval COMMAND [recipe.toml] [--flags]

  run     evaluate a model: zero-shot classification and retrieval, with intervals
  report  write one self-contained HTML file about a dataset, a training run and its evaluation

clip-eval COMMAND --help lists the flags.
"""


def main() -> None:
    run_cli(lambda: run(sys.argv[1:]))


def run(args: list[str]) -> int:
    """Runs a command line; returns the exit code."""
    if not args or args[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0 if args else 2
    command, rest = args[0], args[1:]
    if command == "run":
        from clip_eval.evaluation import EvalConfig, evaluate
        from clip_eval.results import format_table

        config = parse(EvalConfig, rest, prog="clip-eval run", description="Evaluates a model on the recipe's tasks.")
        print(format_table(evaluate(config)))
    elif command == "report":
        from clip_eval.report import ReportConfig, write_report

        description = "Writes one self-contained HTML file; sections without data are left out."
        print(write_report(parse(ReportConfig, rest, prog="clip-eval report", description=description)))
    else:
        raise ClipEvalError(f"unknown command {command!r}: choose run or report")
    return 0


if __name__ == "__main__":
    main()
