"""`clip-data select`: the rows that an expression and deduplication keep."""

from dataclasses import dataclass

from clip_data.commands import Folder, pick
from clip_data.dataset import Dataset
from clip_data.select import SelectConfig


@dataclass(frozen=True, kw_only=True)
class Config(Folder, SelectConfig):
    """An existing selection is kept, if its config is the same."""


def run(config: Config) -> int:
    from clip_data.select import select
    from clip_data.status import format_selection

    made = select(Dataset.open(config.dataset), pick(SelectConfig, config))
    print(f"selection {config.name}: {format_selection(made)}")
    return 0
