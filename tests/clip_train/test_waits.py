"""Waits for what does not come: stopped workers, stopped ranks, ranks that never join. Real processes."""

import dataclasses
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from clip_train import CheckpointConfig, DataConfig, FitConfig, ModelConfig, Source, TrainConfig
from clip_train.watch import REPEAT_S, Watch
from tests.support.distributed import free_port, rank_environment
from tests.support.streams import alive, children
from tests.support.trainer import Trainer, logged, start, wait_for


@pytest.fixture
def endless(tmp_path, datasets) -> FitConfig:
    """A run that does not end by itself, with a checkpoint at every second step."""
    return FitConfig(
        run=str(tmp_path / "run"),
        model=ModelConfig(name="ViT-Ti-4-24"),
        data=DataConfig(sources=(Source(dataset=str(datasets / "train")),), workers=0),
        train=TrainConfig(
            steps=1_000_000, batch_size=8, precision="fp32", threads=1, log_every=1, device="cpu", timeout=600
        ),
        checkpoint=CheckpointConfig(every=2),
    )


def within(config: FitConfig, seconds: float) -> FitConfig:
    train = dataclasses.replace(config.train, timeout=seconds, join_timeout=max(seconds, 2))
    return dataclasses.replace(config, train=train)


def start_ranks(config: FitConfig, folder: Path, ranks: tuple[int, ...] = (0, 1)) -> list[Trainer]:
    port = free_port()
    return [start(config, folder, rank_environment(rank, 2, port)) for rank in ranks]


def ended(process: Trainer, seconds: float = 60) -> tuple[int, str]:
    """(exit code, last line of stderr)."""
    errors = process.communicate(timeout=seconds)[1]
    assert "Traceback" not in errors, errors
    return process.returncode, errors.strip().splitlines()[-1]


def saved(config: FitConfig) -> list[int]:
    return sorted(int(path.name[5:]) for path in (Path(config.run) / "checkpoints").glob("step-*"))


@pytest.mark.slow
def test_a_rank_that_never_joins_is_named(endless, tmp_path):
    (process,) = start_ranks(within(endless, 2), tmp_path, (0,))
    code, line = ended(process)
    assert code == 2
    assert line.startswith("error: rank 0: of 2 ranks, rank 1 did not come to MASTER_ADDR:MASTER_PORT = 127.0.0.1:")
    assert "train.join_timeout" in line


@pytest.mark.slow
def test_a_host_that_is_not_known_is_named(endless, tmp_path):
    environment = {**rank_environment(0, 2, free_port()), "MASTER_ADDR": "no-such-host.invalid"}
    errors = start(within(endless, 2), tmp_path, environment).communicate(timeout=60)[1]
    assert errors.startswith("error: rank 0 cannot meet the others at MASTER_ADDR:MASTER_PORT = no-such-host.invalid:")
    assert errors.count("\n") == 1


@pytest.mark.slow
def test_rank_0_that_never_joins_is_named(endless, tmp_path):
    (process,) = start_ranks(within(endless, 2), tmp_path, (1,))
    code, line = ended(process)
    assert (code, line[:39]) == (2, "error: rank 1: rank 0 has not come to M")


@pytest.mark.slow
def test_a_stop_signal_ends_a_rank_that_waits_for_others(endless, tmp_path):
    port = free_port()
    process = start(endless, tmp_path, rank_environment(0, 2, port))

    def listens() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    wait_for(listens, process)
    process.send_signal(signal.SIGTERM)
    assert ended(process, 30) == (143, "stopped by a signal before the first checkpoint: run again to start over")


@pytest.mark.slow
def test_a_stop_signal_replaces_a_stopped_worker_and_saves(endless, tmp_path):
    config = dataclasses.replace(endless, data=dataclasses.replace(endless.data, workers=1))
    process = start(config, tmp_path)
    wait_for(logged(Path(endless.run), 3), process)
    (worker,) = children(process.pid)
    os.kill(worker, signal.SIGSTOP)
    time.sleep(1)  # the batches that are ready are used up
    process.send_signal(signal.SIGTERM)
    code, line = ended(process, 50)
    assert code == 75
    assert line == f"stopped by a signal after step {saved(endless)[-1]}, which is saved: run again to continue"
    assert not alive(worker)
    steps = [json.loads(text) for text in (Path(endless.run) / "log.jsonl").read_text().splitlines()]
    assert max(row["step"] for row in steps if "event" not in row) == saved(endless)[-1]


@pytest.mark.slow
@pytest.mark.parametrize("stopped", [0, 1])
def test_a_stop_signal_ends_a_rank_that_waits_for_a_stopped_one(endless, tmp_path, stopped):
    ranks = start_ranks(within(endless, 20), tmp_path)
    wait_for(logged(Path(endless.run), 3), ranks[0])
    ranks[stopped].send_signal(signal.SIGSTOP)
    waiting = ranks[1 - stopped]
    waiting.send_signal(signal.SIGTERM)
    try:
        code, line = ended(waiting, 50)
    finally:
        ranks[stopped].kill()
        ranks[stopped].communicate()
    assert code == 75
    assert line.startswith(f"error: rank {1 - stopped} was sent SIGTERM 20 s ago and still is in clip_")
    assert f"rank {stopped}" in line
    assert "does not answer" in line
    assert f"continue after step {saved(endless)[-1]}" in line


@pytest.mark.slow
def test_a_stopped_rank_is_named_when_the_time_is_up(endless, tmp_path):
    ranks = start_ranks(within(endless, 6), tmp_path)
    wait_for(logged(Path(endless.run), 3), ranks[0])
    ranks[1].send_signal(signal.SIGSTOP)
    try:
        code, line = ended(ranks[0], 50)
    finally:
        ranks[1].kill()
        ranks[1].communicate()
    assert code == 2
    assert "rank 0 has waited 6 s (train.timeout) for others" in line
    assert f"rank 1 (process {ranks[1].pid} on " in line


@pytest.mark.slow
def test_a_rank_that_dies_is_named(endless, tmp_path):
    ranks = start_ranks(endless, tmp_path)
    wait_for(logged(Path(endless.run), 1), ranks[0])
    ranks[1].kill()
    code, line = ended(ranks[0])
    ranks[1].communicate()
    assert code == 2
    assert line.startswith(f"error: rank 0 cannot go on: rank 1 (process {ranks[1].pid} on ")
    assert "does not answer; it was in clip_" in line


@pytest.mark.slow
def test_a_second_sigterm_ends_a_rank_that_waits_at_once(endless, tmp_path):
    ranks = start_ranks(endless, tmp_path)
    wait_for(logged(Path(endless.run), 3), ranks[0])
    ranks[1].send_signal(signal.SIGSTOP)
    try:
        ranks[0].send_signal(signal.SIGTERM)
        time.sleep(REPEAT_S + 1)
        assert ranks[0].poll() is None
        asked = time.monotonic()
        ranks[0].send_signal(signal.SIGTERM)
        code, line = ended(ranks[0], 20)
        assert time.monotonic() - asked < 5
    finally:
        ranks[1].kill()
        ranks[1].communicate()
    assert code == 75
    assert line.startswith("error: rank 0 was sent SIGTERM a second time and ends at once in clip_")


def test_stacks_are_shown_when_a_wait_ends_the_process():
    code = """
import threading
from clip_train.watch import Watch
def stuck():
    with watch.limited(1, "for what does not come"):
        threading.Event().wait()
watch = Watch(600)
with watch.running():
    stuck()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    lines = done.stderr.strip().splitlines()
    assert re.fullmatch(r"stacks of the trainer \(process \d+\):", lines[0])
    assert any(line.endswith("in stuck") for line in lines)
    assert lines[-1].startswith("error: the trainer has waited 1 s for what does not come and still is in ")


def test_batches_pass_the_watch_unchanged_and_a_late_one_ends_the_process():
    assert list(Watch(600).batches([1, 2, 3], 600)) == [1, 2, 3]
    code = """
import time
from clip_train.watch import Watch
watch = Watch(600)
def late():
    yield 1
    time.sleep(100)
with watch.running():
    for batch in watch.batches(late(), 1):
        print(batch, flush=True)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "1\n")
    assert "error: the trainer has waited 1 s (data.timeout) for a batch" in done.stderr


@pytest.mark.slow
def test_storage_that_does_not_answer_ends_the_process():
    code = """
import time, torch
from clip_train.parallel import World
from clip_train.watch import Watch
watch = Watch(600, storage=1)
with watch.running():
    World(0, 1, torch.device("cpu"), watch).lead(lambda: time.sleep(100))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 2
    assert "error: the trainer has waited 1 s (checkpoint.timeout) for storage" in done.stderr
