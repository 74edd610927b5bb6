"""A window of steps under torch.profiler."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clip_train.loop import Hook, Loop
from clip_train.monitor.config import ProfileConfig
from clip_train.parallel import World


@dataclass(kw_only=True)
class Profiling(Hook):
    """Writes profile/steps-10-12-rank-0.json, a Chrome trace, and with `memory` a .pickle beside it, on every rank.

    The steps are those that the host launches in the window. The profiler waits for the device at its end.
    """

    config: ProfileConfig
    folder: Path
    world: World
    _profiler: Any = None

    def on_start(self, loop: Loop) -> None:
        if loop.start + 1 == self.config.start:
            self._open()

    def on_update(self, loop: Loop, step: int) -> Mapping[str, Tensor]:
        if step + 1 == self.config.start:
            self._open()
        elif self._profiler is not None and step + 1 == self.config.start + self.config.steps:
            self._close(step)
        return {}

    def on_end(self, loop: Loop) -> None:
        if self._profiler is not None:
            self._close(loop.steps)

    def _open(self) -> None:
        activities = [torch.profiler.ProfilerActivity.CPU]
        if self.world.device.type == "cuda":
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        if self.config.memory:
            torch.cuda.memory._record_memory_history()
        self._profiler = torch.profiler.profile(activities=activities, record_shapes=True)
        self._profiler.start()

    def _close(self, last: int) -> None:
        if self.world.device.type == "cuda":
            torch.cuda.synchronize(self.world.device)
        self._profiler.stop()
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"steps-{self.config.start}-{last}-rank-{self.world.rank}.json"
        self._profiler.export_chrome_trace(str(path))
        self._profiler = None
        if self.config.memory:
            torch.cuda.memory._dump_snapshot(str(path.with_suffix(".pickle")))
            torch.cuda.memory._record_memory_history(enabled=None)
