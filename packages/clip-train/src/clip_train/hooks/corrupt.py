"""The limit of corrupt samples."""

from collections.abc import Iterable
from dataclasses import dataclass

from clip_train.errors import ClipTrainError
from clip_train.hooks.base import RunHook
from clip_train.loop import Loop, Step

JUDGED_FROM = 1000  # samples that are read before their corrupt share is judged; fewer if an epoch has fewer


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

    def exact(self, loop: Loop, step: int) -> bool:
        return False

    def on_step(self, loop: Loop, step: Step) -> None:
        if self.due(loop, step):
            counts = step.counts
            found = self.world.gather((counts["samples"], counts["corrupt"], self.stream.corrupt_uids[:3]))
            least = 0 if step.step == loop.steps else min(JUDGED_FROM, self.samples)
            check_corrupt_share(found, self.limit, "samples", least)
