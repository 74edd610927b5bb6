"""What may reach the weights: no update of a step that is not finite, and none of a spike if the config says so."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from clip_train.errors import ClipTrainError
from clip_train.optim.config import SpikeConfig


class Spike(ClipTrainError):
    """A spike to go back from. `step` is the number of steps up to it, itself included."""

    def __init__(self, step: int, why: str) -> None:
        super().__init__(why)
        self.step = step


VERDICT = "verdict "  # keeps its names apart from those of losses, norms and hooks


class Guard:
    """Judges each step on the device, and keeps the losses and gradient norms of the last good steps for it.

    Loss and norm are those of all ranks, so that all ranks judge alike. The host hears of a verdict some steps later:
    after a step that ends the run, no further step is good.
    """

    def __init__(self, config: SpikeConfig, device: torch.device) -> None:
        self._config = config
        factors = [factor or torch.inf for factor in (config.loss, config.norm)]
        self._factors = torch.tensor(factors, device=device)
        self._window = torch.full((2, config.window), torch.nan, device=device)
        self._streak = torch.zeros((), dtype=torch.int64, device=device)
        self._over = torch.zeros((), dtype=torch.bool, device=device)
        self._verdict: dict[str, Tensor] = {}

    def judge(self, loss: Tensor, norm: Tensor) -> Tensor:
        """Returns a bool scalar on the device: whether the update of a step with this loss and norm may be made."""
        new = torch.stack([loss.detach().float(), norm.detach().float()])
        finite = new.isfinite().all()
        if self._config.action == "off":
            good = finite & ~self._over
            self._over = self._over | ~finite
            self._verdict = {"good": good}
            return good
        limits = self._limits()
        good = finite & (new <= limits).all() & ~self._over
        self._window = torch.where(good, torch.cat([self._window[:, 1:], new[:, None]], dim=1), self._window)
        self._streak = torch.where(good, 0, self._streak + 1)
        most = self._config.most if self._config.action == "skip" else 0
        self._over = self._over | ~finite | (self._streak > most)
        self._verdict = {"good": good, "streak": self._streak, "loss": limits[0], "norm": limits[1]}
        return good

    def verdict(self) -> dict[str, Tensor]:
        """Returns scalars on the device that tell of the last step what `settle` has to know."""
        return {VERDICT + name: value for name, value in self._verdict.items()}

    def settle(self, step: int, loss: float, norm: float, lr: float, values: dict[str, float]) -> bool:
        """Takes the values of the `verdict` out of `values` and returns whether the step's update was made.

        Raises ClipTrainError if the step ends the run, and Spike if the run goes back from it.
        """
        found = {name: values.pop(VERDICT + name) for name in self._verdict}
        if found["good"]:
            return True
        spike, finite = self._config, math.isfinite(loss) and math.isfinite(norm)
        allowed = (f" (optim.spike allows {found['loss']:.4g})", f" ({found['norm']:.4g})") if finite else ("", "")
        what = f"step {step}: the loss is {loss:.4g}{allowed[0]} and the gradient norm {norm:.4g}{allowed[1]}"
        if spike.action == "rewind":
            raise Spike(step, what)
        if not finite:
            raise ClipTrainError(
                f"{what}; checkpoints are not affected. Lower optim.lr (now {lr:g}), lengthen optim.warmup or set "
                "optim.grad_clip_norm"
            )
        streak = int(found["streak"])
        if spike.action == "skip" and streak <= spike.most:
            return False
        row = f" in {streak} steps in a row (optim.spike.most = {spike.most})" if spike.action == "skip" else ""
        raise ClipTrainError(
            f"{what}{row}; checkpoints are not affected. Lower optim.lr (now {lr:g}), set optim.grad_clip_norm, or "
            "raise the limits of optim.spike"
        )

    def state(self) -> dict[str, Tensor]:
        """Returns the window, float32 [2, steps], and the number of steps skipped in a row."""
        return {"window": self._window, "streak": self._streak}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Restores what `state` returned. Steps are good again."""
        self._window, self._streak = (tensors[name].to(self._window.device) for name in ("window", "streak"))
        self._over = torch.zeros_like(self._over)

    def _limits(self) -> Tensor:
        """Returns the largest loss and norm that are no spikes; infinity until the window is full."""
        ordered = self._window.sort(dim=1).values  # NaN, of steps that have not been, comes last
        median = ordered[:, (self._config.window - 1) // 2]
        return torch.where(ordered[:, -1].isnan(), torch.inf, median * self._factors)


def update(optimizer: torch.optim.Optimizer, good: Tensor) -> None:
    """Takes the optimizer's step if `good`, a bool scalar, is true. Otherwise neither weights nor state change.

    Fused optimizers (adamw and sgd of torch) decide on the device. The steps of all others have no condition that the
    device could evaluate: for them the host waits for the value.
    """
    if getattr(optimizer, "_step_supports_amp_scaling", False):
        fused: Any = optimizer
        fused.found_inf, fused.grad_scale = (~good).float(), None
        optimizer.step()
    elif good:
        optimizer.step()
