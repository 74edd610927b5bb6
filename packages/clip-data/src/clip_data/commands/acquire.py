"""`clip-data acquire`: URLs to shards."""

from dataclasses import dataclass

from clip_data.acquire import AcquireConfig
from clip_data.commands import FolderAndExecutor, pick, print_counts
from clip_data.dataset import Dataset
from clip_data.executors import make_executor


@dataclass(frozen=True, kw_only=True)
class Config(FolderAndExecutor, AcquireConfig):
    """Units that are already acquired are kept."""


def run(config: Config) -> int:
    from clip_data.acquire import AcquireStage  # numpy, pyarrow and aiohttp, which --help does without
    from clip_data.stage import run_stage

    dataset = Dataset.open(config.dataset)
    stage = AcquireStage(dataset.url, pick(AcquireConfig, config))
    with make_executor(config.executor) as executor:
        print_counts(stage.name, run_stage(dataset, stage, executor))
    return 0
