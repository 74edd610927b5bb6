import json
from types import SimpleNamespace

import pytest

from clip_train.errors import ClipTrainError
from clip_train.hooks import Logging, Saving, Validation
from clip_train.loop import Step
from clip_train.runfolder import RunLog


class World:
    """Two ranks of which this is the first; the other one waits `more` seconds longer in each window."""

    size = 2

    def __init__(self, more: float) -> None:
        self.more = more

    def gather(self, value):
        return [value, (*value[:2], value[2] + self.more, value[3] + self.more)]


UNHARMED = {"samples": 4, "corrupt": 0}


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
            hook.on_step(loop, Step(step=step, losses={"loss": 1.0}, lr=0.1, grad_norm=1.0, counts=UNHARMED, **times))
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

    size, rank = 2, 0
    watch = SimpleNamespace(wanted=False, saved=None)

    def gather(self, value):
        return [value, value]


def test_a_resumed_run_goes_on_with_the_corrupt_samples_of_its_checkpoint(tmp_path):
    saved = []
    stream = SimpleNamespace(corrupt_uids=[])
    loop = SimpleNamespace(
        steps=9, start=4, metrics={"corrupt": 3}, task=SimpleNamespace(model=None), optimizer=None, stream_state={}
    )
    checkpoints = SimpleNamespace(save=lambda *state: saved.append(dict(state[-1])))
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
                hook.on_step(loop, Step(step=step, counts={"corrupt": corrupt}, **values))
    assert [row["corrupt"] for row in lines(tmp_path)] == [7, 7]
    assert [metrics["corrupt"] for metrics in saved] == [5, 7]  # after steps 5 and 9


def test_held_out_samples_that_every_rank_reads_are_counted_once():
    class Batches(list):
        stats = {"samples": 6, "corrupt": 2}  # noqa: RUF012
        corrupt_uids = ["a", "b"]  # noqa: RUF012

    loop = SimpleNamespace(
        steps=1, metrics={}, task=SimpleNamespace(prepare=lambda batch: batch, evaluate=lambda batch: 1.0)
    )
    hook = Validation(
        batches=Batches([{"text": ["x"] * 3}] * 2),
        batch_size=3,
        every=0,
        max_corrupt=0.2,
        stream=None,
        world=Pair(),
        log=None,
    )
    with pytest.raises(ClipTrainError, match=r"^2 of the 8 held-out samples .* among them a, b:"):
        hook.on_step(loop, SimpleNamespace(step=1))
