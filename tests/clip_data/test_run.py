"""Running a stage: pending units only, counts over everything that is committed, settings fixed."""

import shutil
from dataclasses import dataclass

import pytest

from clip_data.dataset import Dataset
from clip_data.errors import ClipDataError
from clip_data.run import run_stage
from clip_data.status import format_status, status
from tests.support.stages import Copy, planned


class InLine:
    """An executor in this process that notes what it ran and can stop after some units."""

    def __init__(self, stop_after: int = 99) -> None:
        self.ran: list[int] = []
        self.stop_after = stop_after

    def run(self, task, units):
        for unit in units:
            if len(self.ran) == self.stop_after:
                raise KeyboardInterrupt
            self.ran.append(unit.ordinal)
            yield unit, task(unit)


def test_only_pending_units_run_and_counts_cover_all(tmp_path):
    dataset = planned(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run_stage(dataset, "copy", {}, Copy(dataset.root), InLine(stop_after=3), progress=False)
    second = InLine()
    counts = run_stage(dataset, "copy", {}, Copy(dataset.root), second, progress=False)
    assert second.ran == [3]
    assert list(counts.items()) == [("success", 16), ("timeout_total", 3), ("http_404", 1)]
    third = InLine()
    assert run_stage(dataset, "copy", {}, Copy(dataset.root), third, progress=False) == counts
    assert third.ran == []


def test_other_settings_are_refused_before_anything_runs(tmp_path):
    dataset = planned(tmp_path)
    run_stage(dataset, "copy", {"size": 256}, Copy(dataset.root), InLine(stop_after=9), progress=False)
    executor = InLine()
    with pytest.raises(ClipDataError, match="copy results of other settings: size is 256 there and 512 now"):
        run_stage(dataset, "copy", {"size": 512}, Copy(dataset.root), executor, progress=False)
    assert executor.ran == []


def test_the_progress_bar_counts_samples_and_earlier_runs(tmp_path, capsys):
    dataset = planned(tmp_path, rows=50)
    with pytest.raises(KeyboardInterrupt):
        run_stage(dataset, "copy", {}, Copy(dataset.root), InLine(stop_after=2), progress=False)
    assert capsys.readouterr().err == ""
    run_stage(dataset, "copy", {}, Copy(dataset.root), InLine(), label="copying")
    lines = capsys.readouterr().err.replace("\r", "\n").splitlines()
    assert any(line.startswith("copying:  50%") and "100/200" in line for line in lines)
    assert "200/200" in lines[-1]
    assert "98.0% success" in lines[-1]


def test_a_record_that_does_not_add_up_is_a_bug(tmp_path):
    dataset = planned(tmp_path)
    with pytest.raises(AssertionError, match="unit 00000000"):
        run_stage(
            dataset, "copy", {}, lambda unit: {"rows": unit.rows, "counts": {"success": 1}}, InLine(), progress=False
        )


@dataclass(frozen=True)
class Outcomes:
    """Commits given counts for every unit."""

    root: str
    counts: tuple[tuple[str, int], ...]

    def __call__(self, unit):
        counts = dict(self.counts)
        record = {"rows": sum(counts.values()), "counts": {"success": 0, **counts}}
        Dataset.open(self.root).commit("try", unit, record)
        return record


def test_a_stage_without_a_single_success_is_an_error_each_time(tmp_path):
    dataset = planned(tmp_path, rows=10)
    task = Outcomes(dataset.root, (("http_404", 7), *((f"code_{n}", 1) for n in range(2)), ("tls", 1)))
    message = rf"try: none of 40 rows succeeded: http_404 28, .*; .* remove {dataset.root}/commits/try \("
    with pytest.raises(ClipDataError, match=message):
        run_stage(dataset, "try", {}, task, InLine(), progress=False)
    assert len(dataset.committed("try")) == 4
    again = InLine()
    with pytest.raises(ClipDataError, match=message):
        run_stage(dataset, "try", {}, task, again, progress=False)
    assert again.ran == []
    assert "warning: try: none of 40 rows succeeded: http_404 28" in format_status(status(dataset.root))
    shutil.rmtree(tmp_path / "commits" / "try")
    task = Outcomes(dataset.root, (("success", 10),))
    assert run_stage(dataset, "try", {}, task, InLine(), progress=False) == {"success": 40}


def test_a_stage_that_got_no_row_sends_to_the_one_before(tmp_path):
    dataset = planned(tmp_path, rows=10)
    task = Outcomes(dataset.root, (("rejected_upstream", 10),))
    with pytest.raises(ClipDataError, match=rf"remove {dataset.root}/commits/acquire \(.* and run acquire again"):
        run_stage(dataset, "score-x", {}, task, InLine(), progress=False)


@pytest.mark.parametrize(
    ("counts", "warned"),
    [
        ({"success": 9, "timeout_total": 91}, True),
        ({"success": 10, "timeout_total": 90}, False),
        ({"success": 1, "rejected_upstream": 99}, False),
        ({"success": 1, "rejected_upstream": 79, "decode_error": 20}, True),
    ],
)
def test_a_stage_in_which_hardly_a_row_succeeds_warns(tmp_path, capsys, counts, warned):
    dataset = planned(tmp_path, rows=100)
    run_stage(dataset, "try", {}, Outcomes(dataset.root, tuple(counts.items())), InLine(), progress=False)
    assert capsys.readouterr().err.startswith("warning: try: only ") == warned
    assert ("warning: try: only " in format_status(status(dataset.root))) == warned
