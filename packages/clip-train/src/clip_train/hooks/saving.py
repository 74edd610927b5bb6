"""Checkpoints, at their steps and when a signal asks for the end of the run."""

from dataclasses import dataclass, field
from typing import Any

from clip_train.checkpoints.saver import Checkpoints
from clip_train.hooks.base import RunHook, totals
from clip_train.loop import Loop, Step

SETTLE_S = 10.0  # an error ends the run: a save in the background may take so long to finish


@dataclass(kw_only=True)
class Saving(RunHook):
    """Saves checkpoints in the background, also when a signal asks for the end of the run."""

    checkpoints: Checkpoints
    pinned: int = -1
    """a step that is saved, and whose checkpoint is never removed"""
    _before: dict[str, float] = field(default_factory=dict)
    _counts: dict[str, float] = field(default_factory=dict)

    def on_start(self, loop: Loop) -> None:
        self._before = totals(loop.metrics)
        self._counts = dict.fromkeys(self._before, 0)

    def exact(self, loop: Loop, step: int) -> bool:
        return step == self.pinned or super().exact(loop, step)

    def on_step(self, loop: Loop, step: Step) -> None:
        self._counts = totals(step.counts)
        self._report()
        if self.exact(loop, step.step):
            self._save(loop, step.step)
        if step.step == loop.steps:
            self._finish()

    def on_stop(self, loop: Loop, step: int) -> None:
        self.checkpoints.check()  # a save that has failed asks for a stop, too
        self._save(loop, step)
        self._finish()
        raise self.world.watch.ending()

    def on_end(self, loop: Loop) -> None:
        self.checkpoints.settle(SETTLE_S)
        self._report()

    def _save(self, loop: Loop, step: int) -> None:
        ranks = self.world.gather(self._counts)
        loop.metrics.update({name: value + sum(each[name] for each in ranks) for name, value in self._before.items()})
        options: dict[str, Any] = {"before": self.log.sync} if self.log else {}
        self.checkpoints.save(step, loop.stream_state, loop.metrics, pinned=step == self.pinned, **options)

    def _finish(self) -> None:
        self.checkpoints.wait()
        self._report()

    def _report(self) -> None:
        """Logs the saves that have finished: a run with such a line has had a checkpoint."""
        for saved in self.checkpoints.finished():
            assert self.log is not None  # saves are finished by rank 0
            times = {"seconds": round(saved.seconds, 3), "stall_s": round(saved.stall_s, 4), "bytes": saved.bytes}
            self.log.write({"step": saved.step, "event": "checkpoint", **times})
