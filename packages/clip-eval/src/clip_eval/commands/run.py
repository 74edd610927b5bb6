"""`clip-eval run`: the recipe's tasks on a model."""

from clip_eval.evaluation import EvalConfig as Config
from clip_eval.evaluation import evaluate
from clip_eval.results import format_table

__all__ = ["Config", "run"]


def run(config: Config) -> int:
    print(format_table(evaluate(config)))
    return 0
