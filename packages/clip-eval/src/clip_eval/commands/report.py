"""`clip-eval report`: one HTML file; sections without data are left out."""

from clip_eval.report import ReportConfig as Config
from clip_eval.report import write_report

__all__ = ["Config", "run"]


def run(config: Config) -> int:
    print(write_report(config))
    return 0
