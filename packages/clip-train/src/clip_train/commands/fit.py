"""`clip-train fit`: trains a model from a recipe, or estimates what it would cost."""

import json
import sys
from dataclasses import asdict, dataclass, fields

from clip_train.config import FitConfig, resolve
from clip_train.entrypoint import fit
from clip_train.errors import Requeue, Stopped
from clip_train.estimate.config import Machines
from clip_train.launch import read_launch

__all__ = ["Config", "run"]


@dataclass(frozen=True, kw_only=True)
class Config(Machines, FitConfig):
    """A training run; and the machines that --dry-run estimates it for."""

    dry_run: bool = False
    """prints parameters, memory, FLOPs, hours and cost, and neither trains nor writes anything"""
    json: bool = False
    """for --dry-run: prints JSON"""


def run(config: Config) -> int:
    recipe = FitConfig(**{f.name: getattr(config, f.name) for f in fields(FitConfig)})
    return _estimate(config, resolve(recipe)) if config.dry_run else _fit(recipe)


def _estimate(config: Config, recipe: FitConfig) -> int:
    from clip_train.estimate.report import report
    from clip_train.estimate.run import estimate

    machines = Machines(**{f.name: getattr(config, f.name) for f in fields(Machines)})
    found = estimate(recipe, machines)
    print(json.dumps(asdict(found), indent=2) if config.json else report(found, recipe, machines))
    return 0


def _fit(config: FitConfig) -> int:
    leads = read_launch().rank == 0
    try:
        result = fit(config)
    except (Requeue, Stopped) as stop:
        if leads:
            again = (
                f"after step {stop.step}, which is saved: run again to continue"
                if isinstance(stop, Requeue)
                else "before the first checkpoint: run again to start over"
            )
            print(f"stopped by a signal {again}", file=sys.stderr)
        raise
    if leads:
        held_out = "" if result.val_loss is None else f", held-out loss {result.val_loss:.4f}"
        print(f"{result.steps} steps, loss {result.loss:.4f}{held_out}: {result.model}")
    return 0
