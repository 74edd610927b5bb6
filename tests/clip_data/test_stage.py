"""Running a stage: pending units only, counts over everything that is committed, a fixed config."""

import shutil

import pytest

from clip_data.errors import ClipDataError
from clip_data.executors import ExecutorConfig, make_executor
from clip_data.stage import run_stage
from clip_data.status import format_status, status
from tests.support.stages import Copy, InLine, Outcomes, planned


def test_only_pending_units_run_and_counts_cover_all(tmp_path):
    dataset = planned(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run_stage(dataset, Copy(dataset.url), InLine(stop_after=3), progress=False)
    second = InLine()
    counts = run_stage(dataset, Copy(dataset.url), second, progress=False)
    assert second.ran == [3]
    assert list(counts.items()) == [("success", 16), ("timeout_total", 3), ("http_404", 1)]
    third = InLine()
    assert run_stage(dataset, Copy(dataset.url), third, progress=False) == counts
    assert third.ran == []


def test_the_commit_record_says_what_was_done(tmp_path):
    dataset = planned(tmp_path)
    run_stage(dataset, Copy(dataset.url, size=3), InLine(), progress=False)
    record = dataset.record("copy", dataset.units[1])
    seconds = record.pop("seconds")
    assert 0 <= seconds < 10
    assert record == {
        "unit": "00000001",
        "stage": "copy",
        "fingerprint": dataset.stage("copy")["fingerprint"],
        "rows": 5,
        "counts": {"success": 4, "timeout_total": 1},
        "files": {
            "copies/00000001": {
                "bytes": 40,
                "sha256": "61d6d82fb8896492d9e853bbc739dfdaa43ac88c308b439c8415a74e1813886e",
            }
        },
    }
    assert dataset.stage("copy")["config"] == {"size": 3}


def test_another_config_is_refused_before_anything_runs(tmp_path):
    dataset = planned(tmp_path)
    run_stage(dataset, Copy(dataset.url, size=256), InLine(), progress=False)
    executor = InLine()
    with pytest.raises(ClipDataError, match="copy results of another config: size is 256 there and 512 now"):
        run_stage(dataset, Copy(dataset.url, size=512), executor, progress=False)
    assert executor.ran == []


def test_the_progress_bar_counts_samples_and_earlier_runs(tmp_path, capsys):
    dataset = planned(tmp_path, rows=50)
    with pytest.raises(KeyboardInterrupt):
        run_stage(dataset, Copy(dataset.url), InLine(stop_after=2), progress=False)
    assert capsys.readouterr().err == ""
    run_stage(dataset, Copy(dataset.url), InLine(), label="copying")
    lines = capsys.readouterr().err.replace("\r", "\n").splitlines()
    assert any(line.startswith("copying:  50%") and "100/200" in line for line in lines)
    assert "200/200" in lines[-1]
    assert "98.0% success" in lines[-1]


def test_counts_that_do_not_add_up_are_refused(tmp_path):
    dataset = planned(tmp_path)
    with pytest.raises(ClipDataError, match="unit 00000000: stage 'try' counts 1 rows of the 5 of the unit"):
        run_stage(dataset, Outcomes({"success": 1}), InLine(), progress=False)
    assert dataset.committed("try") == set()


def test_a_stage_and_an_executor_of_another_package(tmp_path):
    # What a user needs for a stage of their own is in tests.support.stages: nothing in clip_data names these classes.
    dataset = planned(tmp_path)
    config = ExecutorConfig(kind="tests.support.stages:InLine")
    with make_executor(config) as executor:
        assert isinstance(executor, InLine)
        assert run_stage(dataset, Copy(dataset.url), executor, progress=False)["success"] == 16
    assert sorted(path.name for path in (tmp_path / "copies").iterdir()) == [unit.name for unit in dataset.units]


def test_a_stage_without_a_single_success_is_an_error_each_time(tmp_path):
    dataset = planned(tmp_path, rows=10)
    stage = Outcomes({"http_404": 7, "code_0": 1, "code_1": 1, "tls": 1})
    message = rf"try: none of 40 rows succeeded: http_404 28, .*; .* remove {dataset.url}/commits/try \("
    with pytest.raises(ClipDataError, match=message):
        run_stage(dataset, stage, InLine(), progress=False)
    assert len(dataset.committed("try")) == 4
    again = InLine()
    with pytest.raises(ClipDataError, match=message):
        run_stage(dataset, stage, again, progress=False)
    assert again.ran == []
    assert "warning: try: none of 40 rows succeeded: http_404 28" in format_status(status(dataset.url))
    shutil.rmtree(tmp_path / "commits" / "try")
    assert run_stage(dataset, Outcomes({"success": 10}), InLine(), progress=False) == {"success": 40}


def test_a_stage_that_got_no_row_sends_to_the_one_before(tmp_path):
    dataset = planned(tmp_path, rows=10)
    stage = Outcomes({"rejected_upstream": 10}, name="score-x")
    with pytest.raises(ClipDataError, match=rf"remove {dataset.url}/commits/acquire \(.* and run acquire again"):
        run_stage(dataset, stage, InLine(), progress=False)


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
    run_stage(dataset, Outcomes(counts), InLine(), progress=False)
    assert capsys.readouterr().err.startswith("warning: try: only ") == warned
    assert ("warning: try: only " in format_status(status(dataset.url))) == warned
