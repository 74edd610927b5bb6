"""The log and the progress bar."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from clip_core.console import progress_bar
from clip_train.hooks.base import RunHook, totals
from clip_train.loop import Loop, Step
from clip_train.monitor.flops import Utilisation
from clip_train.monitor.memory import peak_memory
from clip_train.monitor.similarity import similarities
from clip_train.waiting import WAITS


@dataclass
class _Window:
    """What this rank adds up between two lines."""

    steps: int = 0
    seconds: float = 0.0
    wait: float = 0.0
    tokens: int = 0
    columns: int = 0

    def add(self, step: Step) -> None:
        self.steps += 1
        self.seconds += step.seconds
        self.wait += step.wait_s
        self.tokens += step.tokens
        self.columns += step.columns


@dataclass(kw_only=True)
class Logging(RunHook):
    """Writes the log, also at the first step, and a progress bar."""

    batch_size: int
    samples: int
    """samples of one epoch"""
    utilisation: Utilisation | None = None
    """None on ranks that do not write, and for a model whose operations cannot be counted"""
    _bar: Any = None
    _began: float = 0.0
    _window: _Window = field(default_factory=_Window)
    _waited: float = 0.0
    _corrupt: float = 0
    _before: dict[str, float] = field(default_factory=dict)

    def on_start(self, loop: Loop) -> None:
        self._before = totals(loop.metrics)
        self._corrupt = self._before["corrupt"]
        self._began = time.perf_counter() - loop.metrics.get("time_s", 0.0)
        self._waited = loop.metrics.get("wait_s", 0.0)
        if self.log:
            event: dict[str, Any] = {
                "step": loop.start,
                "event": "resume" if loop.start else "start",
                "ranks": self.world.size,
            }
            if self.utilisation:
                event |= {"peak_tflops": self.utilisation.peak / 1e12, "peak_from": self.utilisation.source}
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
        if not self._logged(loop, step):
            return {}
        sums = loop.gradients.sums
        return {
            **loop.task.report(),
            **(similarities(self.world.sum(sums), self.batch_size) if sums is not None and self.batch_size > 1 else {}),
        }

    def _logged(self, loop: Loop, step: int) -> bool:
        return step == 1 or RunHook.exact(self, loop, step)

    def on_step(self, loop: Loop, step: Step) -> None:
        self._window.add(step)
        loop.metrics["time_s"] = time.perf_counter() - self._began
        loop.metrics["wait_s"] = self._waited + self._window.wait
        if self._logged(loop, step.step):
            self._write(loop, step)
        if self._bar:
            self._bar.update()

    def _write(self, loop: Loop, step: Step) -> None:
        own, self._window = self._window, _Window()
        mine = {"wait": own.wait, "busy": own.seconds - WAITS.take(), "tokens": own.tokens}
        ranks: list[tuple[Any, ...]] = self.world.gather(
            (step.counts, self.stream.corrupt_uids, mine, peak_memory(self.world.device))
        )
        counted = {name: value + sum(counts[name] for counts, *_ in ranks) for name, value in self._before.items()}
        corrupt = counted["corrupt"]
        times = [times for _, _, times, _ in ranks]
        wait = max(each["wait"] for each in times)  # the others wait for the slowest rank
        self._waited += wait
        loop.metrics["wait_s"] = self._waited
        if self.log:
            values = {
                **step.losses,
                "lr": step.lr,
                "grad_norm": step.grad_norm,
                **step.norms,
                **step.measured,
                **self._rates(own, sum(each["tokens"] for each in times)),
                "loader_wait_s": wait / own.steps,
                **{name: max(memory[name] for *_, memory in ranks) for name in ranks[0][-1]},
            }
            seen = step.step * self.batch_size
            place = {"step": step.step, "epoch": seen / self.samples, "samples": seen}
            counted |= {"skipped": loop.metrics.get("skipped", 0)}
            counted |= {"wait_s": self._waited, "time_s": loop.metrics["time_s"]}
            if self.world.size > 1:
                slowest = max(range(len(times)), key=lambda rank: times[rank]["busy"])
                counted |= {"slowest_rank": slowest, "slowest_step_s": times[slowest]["busy"] / own.steps}
            self.log.write({**place, **values, **counted})
            self.log.scalars({f"train/{name}": value for name, value in values.items()}, step.step)
            self._bar.set_postfix_str(f"loss {step.losses['loss']:.4f}, {values['samples_per_s']:.0f} samples/s", False)
            if corrupt > self._corrupt:
                uids = [uid for _, some, *_ in ranks for uid in some]
                self.log.write({"step": step.step, "event": "corrupt", "samples": corrupt, "uids": uids})
        self._corrupt = corrupt

    def _rates(self, own: _Window, tokens: int) -> dict[str, float]:
        """Returns what was done in a second, and which share of what the devices could do."""
        samples = own.steps * self.batch_size
        rates = {"samples_per_s": samples / own.seconds, "text_tokens_per_s": tokens / own.seconds}
        if self.utilisation:
            rates["mfu"] = self.utilisation.share(samples, own.columns / own.steps, own.seconds)
        return rates

    def on_end(self, loop: Loop) -> None:
        if self._bar:
            self._bar.close()
