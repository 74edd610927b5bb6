"""What the hooks of a run share."""

from collections.abc import Mapping
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

    def exact(self, loop: Loop, step: int) -> bool:
        """Returns whether the hook acts after this step. It finds the state as it is then."""
        return step == loop.steps or (self.every > 0 and step % self.every == 0)

    def due(self, loop: Loop, step: Step) -> bool:
        return RunHook.exact(self, loop, step.step)


def totals(counts: Mapping[str, float]) -> dict[str, float]:
    """Returns the counts of samples that the log adds up over the processes of a run."""
    return {name: counts.get(name, 0) for name in ("corrupt", "truncated")}
