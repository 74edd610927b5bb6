"""Evaluates a trained model, and writes a report of its dataset, training and evaluation.

uv run pipelines/evaluate.py my_evaluation.toml --evaluate.model runs/mine/train/model.safetensors
"""

import sys
from dataclasses import dataclass, field

from clip_core.cli import parse, run_cli
from clip_eval import EvalConfig, ReportConfig


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    evaluate: EvalConfig = field(default_factory=EvalConfig)
    """the model and the benchmarks"""
    report: ReportConfig | None = None
    """the report; without it only the table is printed"""


def main() -> None:
    config = parse(Evaluation, sys.argv[1:], prog="evaluate.py", description=__doc__)
    from clip_eval import evaluate, format_table, write_report

    print(format_table(evaluate(config.evaluate)))
    if config.report is not None:
        print(f"report: {write_report(config.report)}")


if __name__ == "__main__":
    run_cli(main)
