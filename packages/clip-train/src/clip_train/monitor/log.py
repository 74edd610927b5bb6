"""The log of a run with everything that shows it: TensorBoard, live.html, and the services of `log`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from clip_train.config import FitConfig
from clip_train.monitor.live import LivePage
from clip_train.monitor.trackers import open_trackers
from clip_train.runfolder import RunLog


class ShownLog(RunLog):
    """A RunLog that also updates live.html and sends its scalars to trackers."""

    def __init__(self, config: FitConfig, start: int, *, steps: int) -> None:
        super().__init__(config.run, start)
        lines = (self._place / "log.jsonl").read_text(encoding="utf-8").splitlines()
        self._page = LivePage(self._place / "live.html", map(json.loads, lines))
        self._steps, self._trackers = steps, open_trackers(config, self._store, self._place)

    def write(self, record: Mapping[str, Any]) -> None:
        super().write(record)
        self._page.add(record)
        self._page.write(self._steps)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        super().scalars(values, step)
        for tracker in self._trackers:
            tracker.scalars(values, step)

    def __exit__(self, *error: object) -> None:
        with ExitStack() as stack:  # each is closed, also if one before it fails
            stack.callback(super().__exit__, *error)
            for tracker in self._trackers:
                stack.callback(tracker.close)
            self._page.write(self._steps, over=True)
