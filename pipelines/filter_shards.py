"""Makes a named selection of a dataset: scores captions and images, then applies an expression and deduplication.

uv run pipelines/filter_shards.py --dataset runs/mine --name clean --where "words >= 3" --dedup sha256
"""

import sys
from dataclasses import dataclass, field
from typing import Literal

from clip_core.cli import parse, run_cli
from clip_data.executors import ExecutorConfig


@dataclass(frozen=True, kw_only=True)
class FilterShards:
    dataset: str
    """the dataset folder: a path or an fsspec URL"""
    name: str
    """name of the selection"""
    where: str = ""
    """expression over columns that a kept row fulfils"""
    dedup: tuple[Literal["sha256", "phash"], ...] = ()
    """hashes; of rows with the same hash, the first is kept"""
    parent: str = ""
    """selection to start from"""
    score: tuple[str, ...] = ("caption", "image")
    """scorers whose columns the expression uses"""
    executor: ExecutorConfig = field(default_factory=ExecutorConfig)
    """where the work runs"""


def main() -> None:
    config = parse(FilterShards, sys.argv[1:], prog="filter_shards.py", description=__doc__)
    from clip_data.dataset import Dataset
    from clip_data.executors import make_executor
    from clip_data.score import ScoreStage
    from clip_data.select import SelectConfig, select
    from clip_data.stage import run_stage
    from clip_data.status import format_selection

    dataset = Dataset.open(config.dataset)
    with make_executor(config.executor) as executor:
        for name in config.score:
            run_stage(dataset, ScoreStage(dataset.url, name), executor)
    made = select(dataset, SelectConfig(name=config.name, where=config.where, dedup=config.dedup, parent=config.parent))
    print(f"selection {config.name}: {format_selection(made)}")


if __name__ == "__main__":
    run_cli(main)
