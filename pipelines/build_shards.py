"""Makes a dataset folder from a table of (url, caption): plans units, then fetches, decodes, resizes and writes them.

uv run pipelines/build_shards.py --urls my.parquet --output s3://bucket/dataset
"""

import sys
from dataclasses import dataclass, field

from clip_core.cli import parse, run_cli
from clip_data.acquire import AcquireConfig
from clip_data.executors import ExecutorConfig


@dataclass(frozen=True, kw_only=True)
class BuildShards:
    urls: tuple[str, ...]
    """tables of URLs: parquet, csv, tsv or jsonl; paths, globs or fsspec URLs"""
    output: str
    """the dataset folder: a path or an fsspec URL"""
    url_column: str = "url"
    """column that holds the URL"""
    caption_column: str = "caption"
    """column that holds the caption"""
    extra_columns: tuple[str, ...] = ()
    """further columns to carry along to every sample"""
    rows_per_unit: int = 10_000
    """rows of one shard at most"""
    acquire: AcquireConfig = field(default_factory=AcquireConfig)
    """how images are fetched, checked and resized"""
    executor: ExecutorConfig = field(default_factory=ExecutorConfig)
    """where the work runs"""


def main() -> None:
    config = parse(BuildShards, sys.argv[1:], prog="build_shards.py", description=__doc__)
    from clip_data.acquire import AcquireStage
    from clip_data.executors import make_executor
    from clip_data.plan import PlanConfig, plan
    from clip_data.stage import run_stage

    dataset = plan(
        config.output,
        PlanConfig(
            urls=config.urls,
            url_column=config.url_column,
            caption_column=config.caption_column,
            extra_columns=config.extra_columns,
            rows_per_unit=config.rows_per_unit,
        ),
    )
    with make_executor(config.executor) as executor:
        counts = run_stage(dataset, AcquireStage(dataset.url, config.acquire), executor)
    attempted = sum(counts.values())
    print(f"{counts.get('success', 0):,} of {attempted:,} URLs are now samples in {config.output}")


if __name__ == "__main__":
    run_cli(main)
