"""`clip-train interpolate`: models between a pretrained and a fine-tuned one, and their scores (WiSE-FT)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from clip_train.errors import ClipTrainError
from clip_train.model import ModelConfig

if TYPE_CHECKING:
    from clip_train.interpolation import Measure

__all__ = ["Config", "run"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """Mixes the weights of two models: (1 - alpha) times the base and alpha times the tuned one."""

    base: ModelConfig
    """the model before the fine-tuning, with the keys that [model] had in its recipe"""
    tuned: str
    """the weights after it, such as the model.safetensors of a run"""
    output: str
    """folder of the curve and of the weights that are kept"""
    alphas: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    """points of the curve"""
    keep: tuple[float, ...] = ()
    """alphas whose weights are written"""
    evaluate: str = ""
    """a recipe of clip-eval, whose benchmarks are measured at each of the alphas"""


def run(config: Config) -> int:
    for name, values in (("alphas", config.alphas), ("keep", config.keep)):
        if bad := [value for value in values if not 0 <= value <= 1]:
            raise ClipTrainError(f"{name} has {bad[0]:g}: an alpha is in [0, 1]")
    if not config.keep and not config.evaluate:
        raise ClipTrainError("nothing to do: give evaluate, a recipe of clip-eval, or alphas to keep")
    measure = _measure(config.evaluate) if config.evaluate else None
    from clip_core.store import Store, claim
    from clip_train.interpolation import Interpolation, measure_curve

    store = Store(config.output)
    if not store.local:
        raise ClipTrainError(f"output = {config.output!r} must be a local folder")
    models = Interpolation(config.base, config.tuned)
    claim(store, config)
    points = measure_curve(models, store, config.alphas, config.keep, measure)
    for alpha in config.keep:
        print(store.full(f"alpha-{alpha:g}.safetensors"))
    if points:
        from clip_eval.config import ReportConfig
        from clip_eval.report.interpolation import format_curve
        from clip_eval.report.page import write_report

        print(format_curve(points))
        title = "From the pretrained to the fine-tuned weights"
        out = f"{config.output}/report.html"
        print(
            write_report(ReportConfig(out=out, interpolation=config.output, sections=("interpolation",), title=title))
        )
    return 0


def _measure(recipe: str) -> Measure:
    """Returns the function that measures a weights file with the benchmarks of a recipe."""
    from clip_core.cli import parse
    from clip_eval.config import EvalConfig
    from clip_eval.evaluation import evaluate

    config = parse(EvalConfig, [recipe], prog="clip-train interpolate --evaluate", description="")
    if not config.benchmarks:
        raise ClipTrainError(f"{recipe} has no [[benchmarks]]: name what the models are measured with")
    return lambda path, out: evaluate(replace(config, model=str(path), out=out))
