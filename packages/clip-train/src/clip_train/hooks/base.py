"""What the hooks of a run share."""

from dataclasses import dataclass

from clip_data.stream import SampleStream
from clip_train.loop import Hook, Loop, Step
from clip_train.parallel import World
from clip_train.runfolder import RunLog


@dataclass(kw_only=True)
class RunHook(Hook):
    """A hook that acts every `every` steps and after the last step; `every` = 0 acts only after the last."""

    every: int
    stream: SampleStream
    world: World
    log: RunLog | None
    """None except on rank 0"""

    def due(self, loop: Loop, step: Step) -> bool:
        return step.step == loop.steps or (self.every > 0 and step.step % self.every == 0)
