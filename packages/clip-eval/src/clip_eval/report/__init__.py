"""The report: one self-contained HTML file about a dataset, its training runs and their evaluation."""

from clip_eval.report.page import ReportConfig, write_report

__all__ = ["ReportConfig", "write_report"]
