"""The loss of held-out samples."""

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from clip_data.stream import OnceReader
from clip_train.errors import ClipTrainError
from clip_train.hooks.base import RunHook
from clip_train.hooks.corrupt import check_corrupt_share
from clip_train.loop import Loop, Step


@dataclass(kw_only=True)
class Validation(RunHook):
    """Measures the mean loss over the full batches of held-out samples, in their order. Ranks share the batches."""

    batches: OnceReader
    """yields each sample once in every iteration"""
    batch_size: int
    max_corrupt: float
    weights: Mapping[str, Callable[[], AbstractContextManager[Any]]] = field(
        default_factory=lambda: {"val_loss": nullcontext}
    )
    """by the name of a loss, the context that has its weights in the model; `val_loss` is among them"""

    def on_step(self, loop: Loop, step: Step) -> None:
        if not self.due(loop, step):
            return
        losses: dict[int, dict[str, float]] = {}
        left_out = 0
        for number, batch in enumerate(self.batches):
            if len(batch["text"]) < self.batch_size:
                left_out += len(batch["text"])
            elif number % self.world.size == self.world.rank:
                losses[number] = self._measure(loop, batch)
        stats = self.batches.stats
        mine = (stats["samples"] + stats["corrupt"], stats["corrupt"], self.batches.corrupt_uids[:3])
        gathered = self.world.gather((losses, mine))
        # Every rank reads all samples: the counts of the ranks are equal and must not be added.
        worst = max((counts for _, counts in gathered), key=lambda counts: counts[1])
        check_corrupt_share([worst], self.max_corrupt, "held-out samples", least=0)
        everywhere = {number: loss for part, _ in gathered for number, loss in part.items()}
        if not everywhere:
            raise ClipTrainError(
                f"only {left_out} samples of val.sources can be read: lower val.batch_size = {self.batch_size}"
            )
        # Added in the order of the batches: the sum is the same on every number of ranks.
        rows = [everywhere[number] for number in sorted(everywhere)]
        means = {name: math.fsum(row[name] for row in rows) / len(rows) for name in self.weights}
        loop.metrics.update(means)
        if self.log:
            used = len(everywhere) * self.batch_size
            counts = {"samples": used, "left_out": left_out, "corrupt": stats["corrupt"]}
            self.log.write({"step": step.step, "event": "validation", **means, **counts})
            self.log.scalars({f"val/{name.removeprefix('val_')}": mean for name, mean in means.items()}, step.step)

    def _measure(self, loop: Loop, batch: Mapping[str, Any]) -> dict[str, float]:
        """Returns the loss of one batch under each kind of weights."""
        prepared, found = loop.task.prepare(batch), {}
        for name, weights in self.weights.items():
            with weights():
                found[name] = float(loop.task.evaluate(prepared))
        return found
