"""`clip-data score`: columns computed from captions and images."""

from dataclasses import dataclass

from clip_data.commands import FolderAndExecutor, say
from clip_data.dataset import Dataset
from clip_data.executor import make_executor


@dataclass(frozen=True, kw_only=True)
class Config(FolderAndExecutor):
    """Which columns are added."""

    scorers: tuple[str, ...] = ()
    """names of the scorers, or package.module:Class for your own; empty takes all that have a name"""


def run(config: Config) -> int:
    from clip_data.run import run_stage
    from clip_data.score import SCORERS, ScoreTask

    dataset = Dataset.open(config.root)
    tasks = [ScoreTask(config.root, name) for name in config.scorers or SCORERS]
    with make_executor(config.executor) as executor:
        for task in tasks:
            say(task.stage, run_stage(dataset, task.stage, task.config, task, executor))
    return 0
