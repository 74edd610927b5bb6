"""Learning-rate schedules after the warm-up."""

import math


def cosine(step: int, steps: int) -> float:
    """Falls from 1 to 0 on a half cosine (Loshchilov and Hutter 2017)."""
    return 0.5 * (1 + math.cos(math.pi * step / steps))


def constant(step: int, steps: int) -> float:
    """Stays at 1."""
    return 1.0
