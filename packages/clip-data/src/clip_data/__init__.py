"""From tables of URLs to shards, scores, selections and a stream of samples.

The names below load on first use. A function that has its module's name is imported from there:
`from clip_data.plan import plan`, and so with select, status, uid and verify.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clip_data.acquire import AcquireConfig, AcquireTask
    from clip_data.dataset import Dataset, Unit
    from clip_data.errors import ClipDataError
    from clip_data.executor import Executor, ExecutorConfig, make_executor
    from clip_data.plan import PlanConfig
    from clip_data.run import run_stage
    from clip_data.score import SCORERS, Scorer, ScoreTask
    from clip_data.select import SelectConfig
    from clip_data.store import Store
    from clip_data.stream import SampleStream, Source, build_manifest, read_once
    from clip_data.uid import canonical_url

_MODULES = {
    "SCORERS": "score",
    "AcquireConfig": "acquire",
    "AcquireTask": "acquire",
    "ClipDataError": "errors",
    "Dataset": "dataset",
    "Executor": "executor",
    "ExecutorConfig": "executor",
    "PlanConfig": "plan",
    "SampleStream": "stream",
    "ScoreTask": "score",
    "Scorer": "score",
    "SelectConfig": "select",
    "Source": "stream",
    "Store": "store",
    "Unit": "dataset",
    "build_manifest": "stream",
    "canonical_url": "uid",
    "make_executor": "executor",
    "read_once": "stream",
    "run_stage": "run",
}

__all__ = [
    "SCORERS",
    "AcquireConfig",
    "AcquireTask",
    "ClipDataError",
    "Dataset",
    "Executor",
    "ExecutorConfig",
    "PlanConfig",
    "SampleStream",
    "ScoreTask",
    "Scorer",
    "SelectConfig",
    "Source",
    "Store",
    "Unit",
    "build_manifest",
    "canonical_url",
    "make_executor",
    "read_once",
    "run_stage",
]


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
