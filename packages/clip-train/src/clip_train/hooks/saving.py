"""Checkpoints, at their steps and when a signal asks for the end of the run."""

from dataclasses import dataclass

from clip_train.checkpoint import Checkpoints
from clip_train.hooks.base import RunHook
from clip_train.loop import Loop, Step


@dataclass(kw_only=True)
class Saving(RunHook):
    """Saves a checkpoint, also when a signal asks for the end of the run."""

    checkpoints: Checkpoints
    _corrupt_before: float = 0
    _corrupt: float = 0

    def on_start(self, loop: Loop) -> None:
        self._corrupt_before = loop.metrics.get("corrupt", 0)

    def on_step(self, loop: Loop, step: Step) -> None:
        self._corrupt = step.counts["corrupt"]
        if self.due(loop, step):
            self._save(loop, step.step)

    def on_stop(self, loop: Loop, step: int) -> None:
        if self.world.watch.saved != step:
            self._save(loop, step)
        raise self.world.watch.ending()

    def _save(self, loop: Loop, step: int) -> None:
        if self.log:
            self.log.sync()
        loop.metrics["corrupt"] = self._corrupt_before + sum(self.world.gather(self._corrupt))
        self.checkpoints.save(step, loop.task.model, loop.optimizer, loop.stream_state, loop.metrics)
        self.world.watch.saved = step
        if self.log:  # after the save: a run with this line has had a checkpoint
            self.log.write({"step": step, "event": "checkpoint"})
