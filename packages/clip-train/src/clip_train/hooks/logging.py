"""The log and the progress bar."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from clip_core.console import progress_bar
from clip_train.hooks.base import RunHook
from clip_train.loop import Loop, Step
from clip_train.waiting import WAITS


@dataclass(kw_only=True)
class Logging(RunHook):
    """Writes the log, also at the first step, and a progress bar."""

    batch_size: int
    samples: int
    """samples of one epoch"""
    _bar: Any = None
    _began: float = 0.0
    _steps: int = 0
    _seconds: float = 0.0
    _wait: float = 0.0
    _waited: float = 0.0
    _corrupt: float = 0
    _corrupt_before: float = 0

    def on_start(self, loop: Loop) -> None:
        self._corrupt = self._corrupt_before = loop.metrics.get("corrupt", 0)
        self._began = time.perf_counter() - loop.metrics.get("time_s", 0.0)
        self._waited = loop.metrics.get("wait_s", 0.0)
        if self.log:
            event = {"step": loop.start, "event": "resume" if loop.start else "start", "ranks": self.world.size}
            self.log.write(event)
            self._bar = progress_bar(
                total=loop.steps,
                initial=loop.start,
                desc="train",
                unit="step",
                dynamic_ncols=True,
                show=True,
            )

    def exact(self, loop: Loop, step: int) -> bool:
        return False

    def on_update(self, loop: Loop, step: int) -> Mapping[str, Tensor]:
        return loop.task.report() if self._logged(loop, step) else {}

    def _logged(self, loop: Loop, step: int) -> bool:
        return step == 1 or RunHook.exact(self, loop, step)

    def on_step(self, loop: Loop, step: Step) -> None:
        self._steps += 1
        self._seconds += step.seconds
        self._wait += step.wait_s
        loop.metrics["time_s"] = time.perf_counter() - self._began
        loop.metrics["wait_s"] = self._waited + self._wait
        if self._logged(loop, step.step):
            self._write(loop, step)
        if self._bar:
            self._bar.update()

    def _write(self, loop: Loop, step: Step) -> None:
        busy = self._seconds - WAITS.take()
        ranks = self.world.gather((step.counts["corrupt"], self.stream.corrupt_uids, self._wait, busy))
        corrupt = self._corrupt_before + sum(count for count, *_ in ranks)
        wait = max(seconds for _, _, seconds, _ in ranks)  # the others wait for the slowest rank
        slowest, (*_, slowest_s) = max(enumerate(ranks), key=lambda row: row[1][-1])
        self._waited += wait
        loop.metrics["wait_s"] = self._waited
        if self.log:
            values = {
                **step.losses,
                "lr": step.lr,
                "grad_norm": step.grad_norm,
                **step.norms,
                **step.measured,
                "samples_per_s": self._steps * self.batch_size / self._seconds,
                "loader_wait_s": wait / self._steps,
            }
            seen = step.step * self.batch_size
            place = {"step": step.step, "epoch": seen / self.samples, "samples": seen}
            times = {"wait_s": self._waited, "time_s": loop.metrics["time_s"]}
            counts = {"corrupt": corrupt, "skipped": loop.metrics.get("skipped", 0)}
            if self.world.size > 1:
                times |= {"slowest_rank": slowest, "slowest_step_s": slowest_s / self._steps}
            self.log.write({**place, **values, **counts, **times})
            self.log.scalars({f"train/{name}": value for name, value in values.items()}, step.step)
            self._bar.set_postfix_str(f"loss {step.losses['loss']:.4f}, {values['samples_per_s']:.0f} samples/s", False)
            if corrupt > self._corrupt:
                uids = [uid for _, some, *_ in ranks for uid in some]
                self.log.write({"step": step.step, "event": "corrupt", "samples": corrupt, "uids": uids})
        self._steps, self._seconds, self._wait, self._corrupt = 0, 0.0, 0.0, corrupt

    def on_end(self, loop: Loop) -> None:
        if self._bar:
            self._bar.close()
