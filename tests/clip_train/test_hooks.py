import json
from types import SimpleNamespace

import pytest
import torch

from clip_train.errors import ClipTrainError
from clip_train.hooks import CorruptLimit, Logging, Saving
from clip_train.loop import Step
from clip_train.runfolder import RunLog


class World:
    """Two ranks of which this is the first; the other one waits `more` seconds longer in each window."""

    size, device = 2, torch.device("cpu")

    def __init__(self, more: float) -> None:
        self.more = more

    def gather(self, value):
        counts, uids, times, memory = value
        other = {name: seconds + self.more if name != "tokens" else seconds for name, seconds in times.items()}
        return [value, (counts, uids, other, memory)]


UNHARMED = {"samples": 4, "corrupt": 0, "truncated": 1}


def run(folder, waits, *, metrics=None, start=0, stop=None, more=0.0):
    """Logs the steps after `start`, every tenth; returns the metrics after step `stop`, as a checkpoint keeps them."""
    loop = SimpleNamespace(
        steps=len(waits), start=start, metrics=dict(metrics or {}), task=SimpleNamespace(report=lambda: {})
    )
    with RunLog(folder, start) as log:
        stream = SimpleNamespace(corrupt_uids=[])
        hook = Logging(log=log, world=World(more), every=10, batch_size=4, samples=40, stream=stream)
        hook.on_start(loop)
        for step in range(start + 1, (stop or len(waits)) + 1):
            wait = waits[step - 1]
            times = {"wait_s": wait, "seconds": wait + 0.5}
            hook.on_step(
                loop, Step(step=step, losses={"loss": 1.0}, lr=0.1, grad_norm=1.0, counts=UNHARMED, tokens=20, **times)
            )
        hook.on_end(loop)
    return loop.metrics


def lines(folder):
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [row for row in rows if "loss" in row]


WAITS = [5.0, *(0.01 * i for i in range(1, 34))]


def test_the_log_sums_what_was_waited_whatever_its_lines_cover(tmp_path):
    metrics = run(tmp_path, WAITS)
    rows = lines(tmp_path)
    assert [row["step"] for row in rows] == [1, 10, 20, 30, 34]
    for row, low, high in zip(rows, (0, 1, 10, 20, 30), (1, 10, 20, 30, 34), strict=True):
        assert row["wait_s"] == pytest.approx(sum(WAITS[:high]))
        assert row["loader_wait_s"] == pytest.approx(sum(WAITS[low:high]) / (high - low))
        assert row["samples_per_s"] == pytest.approx(4 * (high - low) / (sum(WAITS[low:high]) + 0.5 * (high - low)))
        assert row["text_tokens_per_s"] == pytest.approx(2 * 5 * row["samples_per_s"])  # of both ranks
        assert row["host_memory_mib"] > 10
        assert row["truncated"] == 2  # one of each rank
    assert metrics["wait_s"] == pytest.approx(sum(WAITS))


def test_a_resumed_run_goes_on_with_the_sums_of_its_checkpoint(tmp_path):
    checkpoint = run(tmp_path, WAITS, stop=25)  # between two lines
    run(tmp_path, WAITS, metrics=checkpoint, start=25)
    rows = lines(tmp_path)
    assert [row["step"] for row in rows] == [1, 10, 20, 30, 34]
    assert rows[3]["loader_wait_s"] == pytest.approx(sum(WAITS[25:30]) / 5)
    assert rows[-1]["wait_s"] == pytest.approx(sum(WAITS))
    assert rows[-1]["time_s"] > rows[2]["time_s"]


def test_the_slowest_rank_is_the_one_that_all_wait_for(tmp_path):
    run(tmp_path, WAITS, more=2.0)
    rows = lines(tmp_path)
    assert rows[1]["loader_wait_s"] == pytest.approx((sum(WAITS[1:10]) + 2) / 9)
    assert rows[-1]["wait_s"] == pytest.approx(sum(WAITS) + 2 * len(rows))
    assert {row["slowest_rank"] for row in rows} == {1}
    assert rows[1]["slowest_step_s"] == pytest.approx((sum(WAITS[1:10]) + 9 * 0.5 + 2) / 9)


class Pair:
    """Two ranks that have met the same."""

    size, rank, leads, device = 2, 0, True, torch.device("cpu")
    watch = SimpleNamespace(wanted=False, saved=None)

    def gather(self, value):
        return [value, value]


def test_a_resumed_run_goes_on_with_the_corrupt_samples_of_its_checkpoint(tmp_path):
    saved = []
    stream = SimpleNamespace(corrupt_uids=[])
    loop = SimpleNamespace(
        steps=9,
        start=4,
        metrics={"corrupt": 3, "truncated": 6},
        task=SimpleNamespace(model=None),
        optimizer=None,
        stream_state={},
    )
    checkpoints = SimpleNamespace(
        save=lambda step, stream, metrics, **_: saved.append(dict(metrics)), wait=int, finished=list
    )
    with RunLog(tmp_path, 4) as log:
        hooks = [
            Logging(log=log, world=Pair(), every=8, batch_size=4, samples=40, stream=stream),
            Saving(checkpoints=checkpoints, every=5, stream=stream, log=log, world=Pair()),
        ]
        for hook in hooks:
            hook.on_start(loop)
        for step, corrupt in ((5, 1), (6, 1), (7, 1), (8, 2), (9, 2)):
            values = {"losses": {"loss": 1.0}, "lr": 1, "grad_norm": 1, "wait_s": 0, "seconds": 1}
            for hook in hooks:
                hook.on_step(loop, Step(step=step, counts={"corrupt": corrupt, "truncated": 10 * corrupt}, **values))
    assert [(row["corrupt"], row["truncated"]) for row in lines(tmp_path)] == [(7, 46), (7, 46)]
    assert [(metrics["corrupt"], metrics["truncated"]) for metrics in saved] == [(5, 26), (7, 46)]  # steps 5 and 9


def limit_of(loop, **options):
    stream = SimpleNamespace(corrupt_uids=["f00d"])
    hook = CorruptLimit(
        limit=0.1, samples=5000, batch_size=100, every=10, stream=stream, world=Pair(), log=None, **options
    )
    hook.on_start(loop)
    return lambda step, corrupt, truncated=0: hook.on_step(
        loop, SimpleNamespace(step=step, counts={"corrupt": corrupt, "truncated": truncated})
    )


def test_the_limit_of_corrupt_samples_holds_over_the_run_and_not_over_one_process():
    loop = SimpleNamespace(steps=1000, metrics={"corrupt": 190})  # of the 2,000 samples of twenty steps before
    at = limit_of(loop)
    at(30, 55)  # 300 of 3,000 are not above a tenth
    with pytest.raises(
        ClipTrainError, match=r"^302 of the 3,000 samples .* \(10\.1%; data\.max_corrupt = 0\.1\), .* f00d"
    ):
        at(30, 56)
    fresh = limit_of(SimpleNamespace(steps=1000, metrics={}))
    fresh(30, 56)  # 112 of 3,000
    limit_of(loop)(25, 500)  # not a logged step


def test_captions_that_are_cut_though_the_sample_had_none_are_told_once(capsys):
    at = limit_of(SimpleNamespace(steps=1000, metrics={}), warns=True)
    at(10, 0)
    at(20, 0, truncated=3)
    at(30, 0, truncated=4)
    assert capsys.readouterr().err.count("6 captions until step 20 had more tokens") == 1
    limit_of(SimpleNamespace(steps=1000, metrics={}))(20, 0, truncated=3)
    assert "captions" not in capsys.readouterr().err
