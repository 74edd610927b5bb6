"""`clip-data acquire`: URLs to shards."""

from dataclasses import dataclass

from clip_data.acquire import AcquireConfig
from clip_data.commands import FolderAndExecutor, pick, say
from clip_data.dataset import Dataset
from clip_data.executor import make_executor


@dataclass(frozen=True, kw_only=True)
class Config(FolderAndExecutor, AcquireConfig):
    """Units that are acquired already are kept."""


def run(config: Config) -> int:
    from clip_data.acquire import AcquireTask  # numpy, pyarrow and aiohttp, which --help does without
    from clip_data.run import run_stage

    settings = pick(AcquireConfig, config)
    dataset = Dataset.open(config.root)
    with make_executor(config.executor) as executor:
        task = AcquireTask(config.root, settings)
        say("acquire", run_stage(dataset, "acquire", settings.settings(), task, executor))
    return 0
