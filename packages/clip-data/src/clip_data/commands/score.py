"""`clip-data score`: columns computed from captions and images."""

from dataclasses import dataclass

from clip_data.commands import FolderAndExecutor, print_counts
from clip_data.dataset import Dataset
from clip_data.executors import make_executor


@dataclass(frozen=True, kw_only=True)
class Config(FolderAndExecutor):
    """Which columns are added."""

    scorers: tuple[str, ...] = ()
    """names of the scorers, or package.module:Class for a user-defined one; empty: all that have a name"""


def run(config: Config) -> int:
    from clip_data.score import SCORERS, ScoreStage
    from clip_data.stage import run_stage

    dataset = Dataset.open(config.dataset)
    stages = [ScoreStage(dataset.url, name) for name in config.scorers or SCORERS]
    with make_executor(config.executor) as executor:
        for stage in stages:
            print_counts(stage.name, run_stage(dataset, stage, executor))
    return 0
