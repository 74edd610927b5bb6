"""The limit of corrupt samples, and the captions that were cut though they are an error."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from clip_core.console import warn
from clip_train.errors import ClipTrainError
from clip_train.hooks.base import RunHook, totals
from clip_train.loop import Loop, Step

JUDGED_FROM = 1000  # samples that are read before their corrupt share is judged; fewer if an epoch has fewer


def check_corrupt_share(
    found: Iterable[tuple[float, float, list[str]]], limit: float, what: str, key: str, least: int = 0
) -> None:
    """Raises ClipTrainError if more than `limit` of the samples are corrupt, given (read, corrupt, uids) of each rank.

    Fewer than `least` samples are not judged. `key` is that of the limit.
    """
    ranks = list(found)
    read, corrupt = int(sum(read for read, _, _ in ranks)), int(sum(corrupt for _, corrupt, _ in ranks))
    if read >= max(least, 1) and corrupt > limit * read:
        uids = ", ".join([uid for _, _, some in ranks for uid in some][:3])
        raise ClipTrainError(
            f"{corrupt:,} of the {read:,} {what} read so far are corrupt ({corrupt / read:.1%}; {key} = {limit:g})"
            f"{', among them ' + uids if uids else ''}: run 'clip-data verify --deep' on the dataset, or raise {key}"
        )


@dataclass(kw_only=True)
class CorruptLimit(RunHook):
    """Ends the run if too many of the samples since step 0 are corrupt, and warns of captions that were cut."""

    limit: float
    samples: int
    """samples of one epoch"""
    batch_size: int
    """samples of a step, of all ranks"""
    warns: bool = False
    """whether to warn of captions that were cut, because a sample of them had none"""
    _before: dict[str, float] = field(default_factory=dict)
    _warned: bool = False

    def on_start(self, loop: Loop) -> None:
        self._before = totals(loop.metrics)

    def exact(self, loop: Loop, step: int) -> bool:
        return False

    def on_step(self, loop: Loop, step: Step) -> None:
        if not self.due(loop, step):
            return
        ranks = self.world.gather((totals(step.counts), self.stream.corrupt_uids[:3]))
        counted = {name: value + sum(counts[name] for counts, _ in ranks) for name, value in self._before.items()}
        uids = [uid for _, some in ranks for uid in some]
        least = 0 if step.step == loop.steps else min(JUDGED_FROM, self.samples)
        found = [(step.step * self.batch_size, counted["corrupt"], uids)]
        check_corrupt_share(found, self.limit, "samples", "data.max_corrupt", least)
        if counted["truncated"] and self.warns and not self._warned and self.world.leads:
            self._warned = True
            warn(
                f"{counted['truncated']:,.0f} captions until step {step.step} had more tokens than the model's context "
                "and were cut, though the sample before the first step had none; the log counts them as truncated"
            )
