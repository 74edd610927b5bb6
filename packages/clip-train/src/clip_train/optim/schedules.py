"""Learning-rate schedules after the warm-up, and shapes of the cooldown. All return a share."""

import math
from collections.abc import Callable

from clip_train.optim.plan import Plan


def cosine(seen: int, plan: Plan) -> float:
    """Falls from 1 to `plan.final` on a half cosine (Loshchilov and Hutter 2017, arXiv 1608.03983)."""
    return plan.final + (1 - plan.final) * 0.5 * (1 + math.cos(math.pi * seen / (plan.total - plan.warmup)))


def constant(seen: int, plan: Plan) -> float:
    """Stays at 1. With a cooldown: warmup-stable-decay (Hu et al. 2024, arXiv 2404.06395)."""
    return 1.0


def rsqrt(seen: int, plan: Plan) -> float:
    """Falls with the square root of the samples, from 1 (Zhai et al. 2022, arXiv 2106.04560)."""
    return math.sqrt(plan.timescale / (plan.timescale + seen))


SHAPES: dict[str, Callable[[float, float], float]] = {
    "linear": lambda done, power: (1 - done) ** power,
    "sqrt": lambda done, power: (1 - math.sqrt(done)) ** power,
    "cosine": lambda done, power: (0.5 * (1 + math.cos(math.pi * done))) ** power,
}
"""Share that is left after the share `done` of the cooldown. 1 - sqrt: Hägele et al. 2024, arXiv 2405.18392."""
