"""`clip-data plan`: tables of URLs to units of work."""

from dataclasses import dataclass

from clip_data.commands import Folder, pick
from clip_data.plan import PlanConfig, plan


@dataclass(frozen=True, kw_only=True)
class Config(Folder, PlanConfig):
    """An existing dataset folder is opened, if its plan is the same."""


def run(config: Config) -> int:
    dataset = plan(config.dataset, pick(PlanConfig, config))
    rows = sum(unit.rows for unit in dataset.units)
    print(f"plan: {rows:,} rows in {len(dataset.units):,} units in {config.dataset}")
    return 0
