"""The loss of held-out samples, and the retrieval of their images and captions."""

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field

from clip_data.stream import OnceReader
from clip_train.errors import ClipTrainError
from clip_train.heldout import HeldOut, Weights
from clip_train.hooks.base import RunHook
from clip_train.hooks.corrupt import check_corrupt_share
from clip_train.loop import Loop, Step


@dataclass(kw_only=True)
class Validation(RunHook):
    """Measures the mean loss over the whole batches of held-out samples, and retrieval over all of them."""

    batches: OnceReader
    """yields this rank's chunks of the batches"""
    batch_size: int
    chunk: int
    samples: int
    """held-out samples, corrupt ones included"""
    max_corrupt: float
    retrieval: bool
    chance: Callable[[int], float | None]
    """the loss of a batch of so many samples for a model that cannot tell them apart; None if it is not known"""
    wait_s: float = math.inf
    """largest number of seconds that one wait for a chunk may take"""
    weights: Weights = field(default_factory=lambda: {"val_loss": nullcontext})
    """by the name of a loss, the context that has its weights in the model; `val_loss` is among them"""

    def on_step(self, loop: Loop, step: Step) -> None:
        if not self.due(loop, step):
            return
        found = HeldOut(
            task=loop.task,
            world=self.world,
            weights=self.weights,
            samples=self.samples,
            batch_size=self.batch_size,
            chunk=self.chunk,
            retrieval=self.retrieval,
        )
        found.run(self.world.watch.batches(self.batches.numbered(), self.wait_s))
        read, counts = self._counts()
        values, used = found.means(self.chance)
        if not used:
            raise ClipTrainError(f"only {read} samples of val.sources can be read: no batch of val.batch_size is left")
        loop.metrics.update({name: values[name] for name in self.weights})
        values |= found.ranks() if self.retrieval else {}
        if self.log:
            counts = {"batch_size": self.batch_size, "samples": used, "left_out": read - used, **counts}
            self.log.write({"step": step.step, "event": "validation", **values, **counts})
            self.log.scalars({f"val/{name.removeprefix('val_')}": value for name, value in values.items()}, step.step)

    def _counts(self) -> tuple[int, dict[str, int]]:
        """Returns (good samples, counts) of all ranks. Raises ClipTrainError if too many samples are corrupt."""
        stats = self.batches.stats
        mine = stats["samples"] + stats["corrupt"], stats["corrupt"], self.batches.corrupt_uids[:3]
        ranks = self.world.gather((mine, stats["truncated"]))
        check_corrupt_share([found for found, _ in ranks], self.max_corrupt, "held-out samples", "val.max_corrupt")
        corrupt = int(sum(lost for (_, lost, _), _ in ranks))
        good = int(sum(tried for (tried, _, _), _ in ranks)) - corrupt
        return good, {"corrupt": corrupt, "truncated": int(sum(cut for _, cut in ranks))}

    def on_end(self, loop: Loop) -> None:
        self.batches.close()
