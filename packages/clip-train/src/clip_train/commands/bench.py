"""`clip-train bench`: times the steps of a recipe and says what limits them."""

import json
from dataclasses import asdict, dataclass, fields

from clip_train.config import FitConfig, resolve
from clip_train.errors import ClipTrainError
from clip_train.launch import read_launch

__all__ = ["Config", "run"]


@dataclass(frozen=True, kw_only=True)
class Config(FitConfig):
    """A training run, of which some steps are timed. Nothing is written."""

    repeats: int = 10
    """steps of each kind that are timed"""
    json: bool = False
    """prints JSON"""


def run(config: Config) -> int:
    if config.repeats < 1:
        raise ClipTrainError(f"repeats = {config.repeats} must be at least 1")
    recipe = resolve(FitConfig(**{f.name: getattr(config, f.name) for f in fields(FitConfig)}))
    from clip_train.trial import measure, trial

    with trial(recipe) as parts:
        found = measure(parts, recipe.optim.lr, config.repeats)
    if read_launch().rank:
        return 0
    if config.json:
        print(json.dumps(asdict(found), indent=2))
        return 0
    rows = [("step, batch on hand", found.compute_s), ("batch, loader alone", found.loader_s)]
    rows += [("gradients, all-reduce alone", found.exchange_s)] if found.exchange_s else []
    for name, seconds in [*rows, ("step with its batch", found.whole_s)]:
        print(f"{name:<28} {1000 * seconds:10.1f} ms {found.samples / seconds:12,.1f} samples/s")
    print(f"limited by the {found.limit}")
    return 0
