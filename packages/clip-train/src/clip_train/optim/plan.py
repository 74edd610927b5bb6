"""Lengths of a schedule: given in steps, samples, epochs or a share of the run, counted in samples."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from clip_train.errors import ClipTrainError

if TYPE_CHECKING:
    from clip_train.optim.config import OptimConfig

Length = int | str
"""A number of steps, or text such as "2000 steps", "10M samples", "0.5 epochs", "5%"."""
_LENGTH = re.compile(r"(\d+(?:\.\d+)?) ?([kMB]?) ?(steps|samples|epochs|%)")
_FACTORS = {"": 1, "k": 10**3, "M": 10**6, "B": 10**9}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The lengths of a run's schedule in samples, and the rate at its end."""

    total: int
    """the whole run"""
    warmup: int = 0
    cooldown: int = 0
    """the last samples, in which the rate falls to `final`"""
    timescale: int = 0
    """samples after which an rsqrt schedule has fallen to 1/√2"""
    final: float = 0.0
    """share of the peak at the end"""


def parse_length(key: str, length: Length) -> tuple[float, str]:
    """Returns (number, unit). Raises ClipTrainError, which names the key, for what is not a length."""
    found = _LENGTH.fullmatch(f"{length} steps" if isinstance(length, int) else length)
    if found is None:
        raise ClipTrainError(
            f"{key} = {length!r} must be a number of steps, at least 0, or a length such as '2000 steps', "
            "'10M samples', '0.5 epochs' or '5%'"
        )
    return float(found[1]) * _FACTORS[found[2]], found[3]


def make_plan(config: OptimConfig, *, steps: int, batch_size: int, epoch: int) -> Plan:
    """Returns the plan of a run of `steps` steps on data of `epoch` samples. Raises ClipTrainError if it does not fit.

    A step has `batch_size` samples on all ranks together.
    """
    total = steps * batch_size
    units = {"steps": batch_size, "samples": 1, "epochs": epoch, "%": total / 100}
    lengths = {}
    for name in ("warmup", "cooldown", "timescale"):
        number, unit = parse_length(f"optim.{name}", getattr(config, name))
        lengths[name] = round(number * units[unit])
    warmup, cooldown = lengths["warmup"], lengths["cooldown"]
    if warmup + cooldown > total or (warmup == total and config.schedule != "constant"):
        cooled = f"optim.cooldown = {config.cooldown} ({cooldown:,} samples) and " if cooldown else ""
        raise ClipTrainError(
            f"{cooled}optim.warmup = {config.warmup} ({warmup:,} samples) must be below the {steps} steps of the run "
            f"({total:,} samples)"
        )
    lengths["timescale"] = lengths["timescale"] or warmup
    if config.schedule == "rsqrt" and not lengths["timescale"]:
        raise ClipTrainError("optim.schedule = 'rsqrt' falls in proportion to optim.timescale or optim.warmup: set one")
    return Plan(total=total, final=config.final, **lengths)
