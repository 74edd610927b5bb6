"""Zero-shot classification, retrieval and reports, with an interval and a fingerprint on every number.

Importing this module imports neither torch nor pyarrow; each public name is loaded when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clip_eval.errors import ClipEvalError
    from clip_eval.evaluation import EvalConfig, evaluate
    from clip_eval.leakage import refuse_training_samples
    from clip_eval.report import ReportConfig, write_report
    from clip_eval.results import format_table
    from clip_eval.tasks import TaskConfig

_MODULE_OF = {
    "ClipEvalError": "errors",
    "EvalConfig": "evaluation",
    "ReportConfig": "report",
    "TaskConfig": "tasks",
    "evaluate": "evaluation",
    "format_table": "results",
    "refuse_training_samples": "leakage",
    "write_report": "report",
}

__all__ = [
    "ClipEvalError",
    "EvalConfig",
    "ReportConfig",
    "TaskConfig",
    "evaluate",
    "format_table",
    "refuse_training_samples",
    "write_report",
]


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULE_OF])
