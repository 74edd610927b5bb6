"""`clip-eval run`: measures a model with the benchmarks of a recipe."""

from clip_eval.config import EvalConfig as Config

__all__ = ["Config", "run"]


def run(config: Config) -> int:
    from clip_eval.evaluation import evaluate
    from clip_eval.results import format_table

    print(format_table(evaluate(config)))
    return 0
