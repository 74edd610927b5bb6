"""The state of a folder, read from the folder alone."""

import json
import os
from pathlib import Path

import pytest

from clip_data.errors import ClipDataError
from clip_data.select import SelectConfig, select
from clip_data.stage import run_unit
from clip_data.status import format_status, status
from tests.support.datasets import make_dataset, make_image
from tests.support.stages import Copy, planned


def test_progress_counts_and_rate_of_a_stage(tmp_path):
    dataset = planned(tmp_path, rows=10)
    assert status(str(tmp_path))["stages"] == {}
    dataset.open_stage("copy", {"size": 0})
    assert status(str(tmp_path))["stages"]["copy"]["success_share"] is None
    for second, unit in enumerate(dataset.units[:3]):
        run_unit(dataset.url, Copy(dataset.url), unit)
        os.utime(tmp_path / "commits" / "copy" / f"{unit.name}.json", (1000 + 4 * second,) * 2)
    state = status(str(tmp_path))
    assert (state["units"], state["rows"]) == (4, 40)
    assert state["stages"]["copy"] == {
        "units": 3,
        "units_total": 4,
        "rows": 30,
        "rows_total": 40,
        "counts": {"success": 27, "timeout_total": 2, "http_404": 1},
        "success_share": 0.9,
        "top_rejections": {"timeout_total": 2, "http_404": 1},
        "samples_per_second": 20 / 8,
        "seconds_left": 4.0,
    }
    assert json.loads(json.dumps(state)) == state
    line = format_status(state).splitlines()[-1].split()
    assert line == ["copy", "3/4", "30", "90.0%", "2", "0m04s", "timeout_total", "2,", "http_404", "1"]


def test_selections_and_takedowns(tmp_path):
    rows = [{"image": make_image(i) if i % 3 else None, "caption": f"picture {i}"} for i in range(9)]
    dataset = make_dataset(tmp_path, rows)
    select(dataset, SelectConfig(name="all"))
    dataset.take_down(["00" * 16], "asked")
    state = status(str(tmp_path))
    assert state["selections"]["all"]["attempted"] == 9
    assert state["selections"]["all"]["kept"] == 6
    assert state["selections"]["all"]["counts"]["rejected"] == 3
    text = format_status(state)
    assert "selection all: 6 of 9 rows; rejected 3" in text
    assert "taken down: 1 samples" in text


def test_reading_the_state_changes_nothing(tmp_path):
    planned(tmp_path)
    before = sorted((path, path.stat().st_mtime_ns) for path in Path(tmp_path).rglob("*"))
    status(str(tmp_path))
    assert sorted((path, path.stat().st_mtime_ns) for path in Path(tmp_path).rglob("*")) == before


def test_no_dataset(tmp_path):
    with pytest.raises(ClipDataError, match="holds no dataset"):
        status(str(tmp_path))
