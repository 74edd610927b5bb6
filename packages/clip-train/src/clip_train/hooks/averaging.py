"""The moving average of the weights."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from clip_train.loop import Hook, Loop
from clip_train.optim.averages import Ema


@dataclass(kw_only=True)
class Averaging(Hook):
    """Updates the moving average of the weights."""

    ema: Ema

    def on_update(self, loop: Loop, step: int) -> Mapping[str, Tensor]:
        self.ema.update(step)
        return {}
