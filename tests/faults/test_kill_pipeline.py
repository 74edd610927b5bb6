"""The main job under SIGKILL: whatever the moment, the same command ends with the same bytes and the same loss."""

import os
import signal
import subprocess
import time

from tests.support.pipeline import SHORT, alive, command, digests, free_port, run

PRODUCTS = (
    "input/*",
    "dataset/*",
    "dataset/shards/*",
    "dataset/columns/**/*",
    "dataset/selections/**/*",
    "train/model.safetensors",
    "train/done.json",
    "eval/results.jsonl",
    "eval/details/*",
)


def test_a_pipeline_killed_again_and_again_ends_the_same(tmp_path):
    port = f"--input.port={free_port()}"
    whole = run("end_to_end.py", "--output", tmp_path / "run", port, *SHORT)
    assert whole.returncode == 0, whole.stderr[-3000:]
    (tmp_path / "run").rename(tmp_path / "whole")  # paths are part of what is written: the same one again
    killed = command("end_to_end.py", "--output", tmp_path / "run", port, *SHORT)
    marker = f"KILLED_RUN={os.getpid()}-{port}"
    environment = {**os.environ, marker.split("=")[0]: marker.split("=")[1]}
    kills, delay = 0, 2.0
    while True:
        process = subprocess.Popen(
            killed, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        try:
            _, errors = process.communicate(timeout=delay)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)  # the driver alone: its workers and its server must notice themselves
            process.communicate()
            kills, delay = kills + 1, delay + 1.3
            gone_by = time.monotonic() + 10
            while left := alive(marker):
                assert time.monotonic() < gone_by, f"processes outlive their killed driver: {left}"
                time.sleep(0.1)
            continue
        assert process.returncode == 0, errors[-3000:]
        break
    assert kills >= 3
    assert digests(tmp_path / "run", *PRODUCTS) == digests(tmp_path / "whole", *PRODUCTS)
