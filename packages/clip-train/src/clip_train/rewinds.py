"""Going back from a spike (`optim.spike.action = "rewind"`).

The run continues from its newest checkpoint, with the samples that come after the batch of the spike (Chowdhery et al.
2022, arXiv 2204.02311, section 5.1). rewinds.json in the run folder makes every later start from that checkpoint do so.
"""

from __future__ import annotations

from typing import Any

from clip_core.console import warn
from clip_core.store import Store
from clip_train.checkpoints.saver import Checkpoints, Resumed
from clip_train.errors import ClipTrainError
from clip_train.optim.config import SpikeConfig
from clip_train.optim.guard import Spike
from clip_train.parallel import World

FILE = "rewinds.json"


class Rewinds:
    """The spikes that the run in a folder has gone back from. All methods are called on every rank."""

    def __init__(self, run: str, config: SpikeConfig, world: World) -> None:
        self._store, self._most, self._world = Store(run), config.most, world
        self._ahead = 0  # batches that the stream is ahead of the steps
        self._made: list[dict[str, Any]] = world.lead(self._read)

    def continue_after(self, resumed: Resumed, stream: Any) -> None:
        """Moves the stream, which is where the run begins or continues, past the spike that has led back there."""
        state = stream.state_dict()
        there = [each["batches"] for each in self._made if each["checkpoint"] == resumed.step]
        batches = max([state["step"], *there])
        stream.load_state_dict({**state, "step": batches})
        self._ahead = batches - resumed.step

    def add(self, spike: Spike, checkpoints: Checkpoints) -> dict[str, Any]:
        """Records that the run goes back to its newest checkpoint, once that is saved. Returns the record.

        Raises ClipTrainError without a checkpoint, or if the run has gone back to it too often.
        """
        checkpoints.wait()
        step = max(self._world.lead(checkpoints.folder.steps), default=None)
        if step is None:
            raise ClipTrainError(
                f"{spike}; optim.spike.action = 'rewind' has no checkpoint to go back to: lower checkpoint.every"
            ) from spike
        times = 1 + sum(each["checkpoint"] == step for each in self._made)
        if times > self._most:
            raise ClipTrainError(
                f"{spike}; the run has gone back to step {step} {self._most} times (optim.spike.most)"
            ) from spike
        record = {"checkpoint": step, "spike": spike.step, "batches": spike.step + self._ahead, "times": times}
        self._made = [*self._made, record]
        if self._world.leads:
            warn(f"{spike}; the run goes back to step {step}, and leaves out the {spike.step - step} batches since")
        self._world.lead(lambda: self._store.write_json(FILE, self._made))
        return record

    def _read(self) -> list[dict[str, Any]]:
        return list(self._store.read_json(FILE)) if self._store.exists(FILE) else []
