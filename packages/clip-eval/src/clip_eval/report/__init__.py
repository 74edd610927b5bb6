"""The report: one self-contained HTML file about a dataset, its training runs and their evaluation."""

from clip_eval.report.page import write_report

__all__ = ["write_report"]
