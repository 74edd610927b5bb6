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

    def on_start(self, loop: Loop) -> None:
        self._corrupt_before = loop.metrics.get("corrupt", 0)

    def on_step(self, loop: Loop, step: Step) -> None:
        watch = self.world.watch
        stopping = self.world.any(watch.wanted)
        if not stopping and not self.due(loop, step):
            return
        if self.log:
            self.log.sync()
        loop.metrics["corrupt"] = self._corrupt_before + sum(self.world.gather(self.stream.stats["corrupt"]))
        self.checkpoints.save(step.step, loop.task.model, loop.optimizer, self.stream.state_dict(), loop.metrics)
        watch.saved = step.step
        if self.log:  # after the save: a run with this line has had a checkpoint
            self.log.write({"step": step.step, "event": "checkpoint"})
        if stopping and step.step != loop.steps:
            raise watch.ending()
