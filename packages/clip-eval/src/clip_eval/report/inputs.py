"""What the sections of a report are made from, and what they return."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, TypeVar

from clip_core import ClipError
from clip_core.store import Store
from clip_data.dataset import Dataset, is_dataset
from clip_eval.config import ReportConfig
from clip_eval.errors import ClipEvalError
from clip_eval.report.html import Html
from clip_eval.report.images import Images
from clip_eval.report.runs import Run, read_run
from clip_eval.report.scan import Scan, scan
from clip_eval.results import Row, check_rows, file_in_store, read_results

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Section:
    """One part of the page."""

    name: str
    """Anchor of the section and, capitalized, its link."""
    title: str
    """Heading."""
    parts: Sequence[Html]
    """The body."""
    cards: Sequence[Html] = ()
    """Key figures for the top of the page."""


class Inputs:
    """The inputs of a report. Each is read when a section first uses it, and is None or empty if it does not exist."""

    def __init__(self, config: ReportConfig) -> None:
        self.config = config
        self.absent: list[str] = []
        """what the config names and what does not exist"""
        self.images = cache(_images)
        """function from the folder of a dataset to its Images, or to None"""

    def _noted(self, what: str, name: str, found: T) -> T:
        """Returns what was found of an input, and lists the input as absent if that is nothing."""
        if name and not found:
            self.absent.append(f"{what} {name}")
        return found

    @cached_property
    def dataset(self) -> Dataset | None:
        url = self.config.dataset
        return self._noted("dataset", url, Dataset.open(url) if url and is_dataset(Store(url)) else None)

    @cached_property
    def selections(self) -> list[str]:
        """The selections of the config that exist."""
        known = self.dataset.selections() if self.dataset else self.config.selections
        return [name for name in self.config.selections if self._noted("selection", name, name in known)]

    @cached_property
    def scan(self) -> Scan | None:
        """Rows of the dataset; None if no unit is finished."""
        return scan(self.dataset) if self.dataset else None

    @cached_property
    def runs(self) -> list[Run]:
        folders = dict.fromkeys(self.config.runs)
        return [run for folder in folders if (run := self._noted("training run", folder, read_run(folder)))]

    @cached_property
    def seconds(self) -> dict[str, float] | None:
        """The wall time of each stage of a pipeline."""
        file = self.config.timings
        store, name = file_in_store(file) if file else (Store("."), "")
        if not file or not self._noted("timings", file, store.exists(name)):
            return None
        try:
            return {str(stage): float(seconds) for stage, seconds in store.read_json(name).items()}
        except (ValueError, TypeError, AttributeError) as error:
            raise ClipEvalError(f"{file} must be a JSON object of stages and their seconds: {error}") from error

    @cached_property
    def results(self) -> list[Row]:
        folder = self.config.evaluation
        return self._noted("evaluation", folder, read_results(Store(folder)) if folder else [])

    @cached_property
    def curve(self) -> list[dict[str, Any]]:
        """The result rows of the models between two: [{"alpha", "rows"}, …], by ascending alpha."""
        folder = self.config.interpolation
        store = Store(folder or ".")
        if not folder or not self._noted("interpolation", folder, store.exists("curve.json")):
            return []
        try:
            points = store.read_json("curve.json")["points"]
            return [{"alpha": float(point["alpha"]), "rows": check_rows(point["rows"])} for point in points]
        except (KeyError, ValueError, TypeError) as error:
            raise ClipEvalError(f"{folder}/curve.json is not the curve of an interpolation: {error}") from error


def _images(dataset: str) -> Images | None:
    try:
        return Images(Dataset.open(dataset))
    except ClipError:
        return None  # results outlive their data; the section says so
