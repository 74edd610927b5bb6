"""The check of the nodes, and the clock that finds the slowest rank. Real ranks."""

import time
from pathlib import Path

import pytest
import torch

from clip_train import ClipTrainError, nodecheck
from clip_train.parallel import World, all_gather, join_world
from clip_train.waiting import WAITS
from tests.support.distributed import run_ranks

NAMES = {"matmul_gflops", "all_reduce_mb_per_s", "disk_write_mb_per_s", "disk_read_mb_per_s"}


def check(folder: str, slow: int, broken: int) -> dict | str:
    """The rates of all ranks, or the message; the ranks `slow` and `broken` are what they are called."""
    with join_world("cpu") as world:
        if world.rank == slow:
            nodecheck.PROBES = [lambda world, folder: {name: 0.001 for name in NAMES}]
        elif world.rank == broken:
            nodecheck.PROBES = [*nodecheck.PROBES, fail]
        elif slow >= 0:
            nodecheck.PROBES = [lambda world, folder: {name: 1.0 for name in NAMES}]
        try:
            return nodecheck.check_nodes(world, Path(folder), 0.5)
        except ClipTrainError as error:
            return str(error)


def fail(world: World, folder: Path) -> dict[str, float]:
    raise OSError(28, "No space left on device")


def test_the_rates_of_all_ranks_are_measured_and_nothing_is_left(tmp_path):
    first, second = run_ranks(2, check, str(tmp_path), -1, -1)
    if isinstance(first, str):  # on a busy machine two ranks differ by as much
        assert "the check of the nodes failed: rank " in first
    else:
        assert first.keys() == NAMES | {"hosts"}
        assert all(len(values) == 2 for values in first.values())
        assert all(rate > 0 for name in NAMES for rate in first[name])
    assert first == second
    assert list(tmp_path.iterdir()) == []


def test_a_slow_rank_is_named_on_every_rank(tmp_path):
    first, second, third = run_ranks(3, check, str(tmp_path), 2, -1)
    assert first == second == third
    assert "rank 2 on " in first
    assert "has matmul_gflops = 0.001, below 0.5 of the median 1;" in first
    assert "rank 0" not in first


def test_a_rank_that_cannot_write_is_named_on_every_rank(tmp_path):
    first, second = run_ranks(2, check, str(tmp_path), -1, 1)
    assert first == second
    assert first.startswith("the check of the nodes failed (train.node_check): rank 1 on ")
    assert first.endswith("No space left on device")


def test_storage_that_does_not_keep_what_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(nodecheck.os, "urandom", lambda count: Forgotten(bytes(count)))
    with pytest.raises(ClipTrainError, match="does not hold what was written"):
        nodecheck.check_nodes(World(0, 1, torch.device("cpu")), tmp_path, 0.5)


class Forgotten(bytes):
    """Bytes that equal nothing that is read."""

    __hash__ = bytes.__hash__

    def __eq__(self, other: object) -> bool:
        return False

    def __ne__(self, other: object) -> bool:
        return True


def busy_seconds(late: int) -> float:
    """The seconds of three steps without the waits for others; the rank `late` works 0.3 s longer in each."""
    with join_world("cpu") as world:
        all_gather(torch.ones(1))
        WAITS.take()
        began = time.perf_counter()
        for _ in range(3):
            time.sleep(0.3 if world.rank == late else 0.0)
            all_gather(torch.ones(4, 4))
        return time.perf_counter() - began - WAITS.take()


@pytest.mark.parametrize("late", [0, 1])
def test_the_rank_that_the_others_wait_for_is_busiest(late):
    busy = run_ranks(2, busy_seconds, late)
    assert busy[late] > 0.9
    assert busy[1 - late] < 0.5
