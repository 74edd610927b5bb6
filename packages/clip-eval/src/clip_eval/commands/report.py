"""`clip-eval report`: one HTML file; sections without data are left out."""

from clip_eval.config import ReportConfig as Config

__all__ = ["Config", "run"]


def run(config: Config) -> int:
    from clip_eval.report.page import write_report

    print(write_report(config))
    return 0
