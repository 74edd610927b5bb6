"""The report: one self-contained HTML file. Each section is a function in a file of this folder."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from clip_core.registry import Registry

if TYPE_CHECKING:
    from clip_eval.report.inputs import Inputs, Section

SECTIONS: Registry[Callable[[Inputs], Section | None]] = Registry(
    "report section",
    {
        "funnel": "clip_eval.report.funnel:funnel",
        "columns": "clip_eval.report.columns:columns",
        "samples": "clip_eval.report.samples:samples",
        "training": "clip_eval.report.training:training",
        "time": "clip_eval.report.training:time",
        "evaluation": "clip_eval.report.evaluation:evaluation",
        "interpolation": "clip_eval.report.interpolation:interpolation",
    },
)
"""functions that return a section, or None if its input does not exist"""
