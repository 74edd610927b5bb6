"""The sub-commands of `clip-data`, one module each, with a `Config` for the flags, and `run`.

They share the flags for a dataset and its executor, and the line that reports the counts.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from clip_data.dataset import SUCCESS
from clip_data.executors import ExecutorConfig

C = TypeVar("C")


@dataclass(frozen=True, kw_only=True)
class Folder:
    """The dataset that a command works on."""

    dataset: str
    """folder of the dataset: a path or an fsspec URL"""


@dataclass(frozen=True, kw_only=True)
class FolderAndExecutor(Folder):
    """The dataset that a stage works on, and where its units run."""

    executor: ExecutorConfig = field(default_factory=ExecutorConfig)
    """where the units run"""


def pick(config: type[C], parsed: Any) -> C:
    """Returns the config of a stage, out of that of a command."""
    return config(**{f.name: getattr(parsed, f.name) for f in fields(config)})  # type: ignore[arg-type]


def print_counts(what: str, counts: Mapping[str, int]) -> None:
    """Prints how many rows a stage accepted, and why it rejected the others."""
    rows = sum(counts.values())
    reasons = ", ".join(f"{code} {count:,}" for code, count in counts.items() if code != SUCCESS)
    share = f"{counts[SUCCESS] / rows:.1%}"
    print(f"{what}: {counts[SUCCESS]:,} of {rows:,} rows ({share})" + (f"; rejected: {reasons}" if reasons else ""))
