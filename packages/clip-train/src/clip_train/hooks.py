"""Hooks of the training loop: log and progress bar, limit of corrupt samples, validation, checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from clip_core.console import progress_bar
from clip_data.stream import OnceReader, SampleStream
from clip_train.checkpoint import Checkpoints
from clip_train.errors import ClipTrainError
from clip_train.loop import Hook, Loop, Step
from clip_train.optim.averages import Ema
from clip_train.parallel import World
from clip_train.runfolder import RunLog
from clip_train.waiting import WAITS

JUDGED_FROM = 1000  # samples that are read before their corrupt share is judged; fewer if an epoch has fewer


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

    def on_step(self, loop: Loop, step: Step) -> None:
        self._steps += 1
        self._seconds += step.seconds
        self._wait += step.wait_s
        loop.metrics["time_s"] = time.perf_counter() - self._began
        loop.metrics["wait_s"] = self._waited + self._wait
        if step.step == 1 or self.due(loop, step):
            self._write(loop, step)
        if self._bar:
            self._bar.update()

    def _write(self, loop: Loop, step: Step) -> None:
        busy = self._seconds - WAITS.take()
        ranks = self.world.gather((self.stream.stats["corrupt"], self.stream.corrupt_uids, self._wait, busy))
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
                **loop.task.report(),
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


def check_corrupt_share(found: Iterable[tuple[float, float, list[str]]], limit: float, what: str, least: int) -> None:
    """Raises ClipTrainError if more than `limit` of the samples are corrupt, given (read, corrupt, uids) of each rank.

    Fewer than `least` samples are not judged.
    """
    ranks = list(found)
    read, corrupt = int(sum(read for read, _, _ in ranks)), int(sum(corrupt for _, corrupt, _ in ranks))
    if read >= max(least, 1) and corrupt > limit * read:
        uids = ", ".join([uid for _, _, some in ranks for uid in some][:3])
        raise ClipTrainError(
            f"{corrupt:,} of the {read:,} {what} read so far are corrupt ({corrupt / read:.1%}; data.max_corrupt = "
            f"{limit:g}), among them {uids}: run 'clip-data verify --deep' on the dataset, or raise data.max_corrupt"
        )


@dataclass(kw_only=True)
class CorruptLimit(RunHook):
    """Ends the run if the share of corrupt samples is too large."""

    limit: float
    samples: int
    """samples of one epoch"""

    def on_step(self, loop: Loop, step: Step) -> None:
        if self.due(loop, step):
            stats = self.stream.stats
            found = self.world.gather((stats["samples"], stats["corrupt"], self.stream.corrupt_uids[:3]))
            least = 0 if step.step == loop.steps else min(JUDGED_FROM, self.samples)
            check_corrupt_share(found, self.limit, "samples", least)


@dataclass(kw_only=True)
class Averaging(Hook):
    """Updates the moving average of the weights."""

    ema: Ema

    def on_step(self, loop: Loop, step: Step) -> None:
        self.ema.update(step.step)


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
