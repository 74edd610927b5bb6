"""The moving average of the weights."""

from dataclasses import dataclass

from clip_train.loop import Hook, Loop, Step
from clip_train.optim.averages import Ema


@dataclass(kw_only=True)
class Averaging(Hook):
    """Updates the moving average of the weights."""

    ema: Ema

    def on_step(self, loop: Loop, step: Step) -> None:
        self.ema.update(step.step)
