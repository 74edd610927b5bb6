import os
import re
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from clip_data.errors import ClipDataError
from clip_data.stream import SampleStream, Source, build_manifest, read_once
from clip_data.stream.worker import start
from tests.support.streams import EVAL, TRAIN, alive, buggy, children, content, deadly, letters, sleepy, stream_dataset

CORRUPT = (3, 4, 30, 31, 32, 77, 89)  # each kind of damage, neighbours, the last row
BATCH = 12


def manifest_of(root):
    return build_manifest([Source(dataset=str(root))])


def stream(manifest, **options):
    defaults = {"preprocess": TRAIN, "tokenizer": letters, "global_batch_size": BATCH, "seed": 3, "workers": 0}
    return SampleStream(manifest, **{**defaults, **options})


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults") / "data"
    stream_dataset(folder)
    return folder


@pytest.mark.slow
def test_a_corrupt_sample_is_replaced_counted_and_shifts_nothing(root, tmp_path):
    damaged = stream_dataset(tmp_path / "damaged", corrupt=CORRUPT)
    bad = {
        row["uid"].hex()
        for unit in damaged.units
        for row in damaged.sidecar(unit).to_pylist()
        if row["number"] in CORRUPT
    }
    steps = 41  # six epochs
    with stream(manifest_of(root)) as samples:
        clean = list(islice(samples, steps))
    with stream(manifest_of(tmp_path / "damaged")) as samples:
        found = list(islice(samples, steps))
        stats, reported = samples.stats, samples.corrupt_uids
    replaced = 0
    for good, other in zip(clean, found, strict=True):
        for index, uid in enumerate(good["uid"]):
            if uid in bad:
                replaced += 1
                assert other["uid"][index] not in bad
            else:
                assert other["uid"][index] == uid
                np.testing.assert_array_equal(other["image"][index], good["image"][index])
                np.testing.assert_array_equal(other["text"][index], good["text"][index])
    assert stats["corrupt"] == replaced == len(CORRUPT) * steps * BATCH // 82
    assert stats["samples"] == steps * BATCH
    assert set(reported) == bad
    assert len(reported) == replaced
    with stream(manifest_of(tmp_path / "damaged"), workers=3) as samples:
        assert content(islice(samples, 14)) == content(found[:14])
        assert samples.stats["corrupt"] > 0


def test_the_replacement_is_the_next_good_sample_of_the_stream(root, tmp_path):
    one = {"canonical_streams": 1, "preprocess": EVAL}
    with stream(manifest_of(root), **one) as samples:
        order = [uid for batch in islice(samples, 6) for uid in batch["uid"]]
    dataset = stream_dataset(tmp_path / "damaged", corrupt=CORRUPT)
    bad = {r["uid"].hex() for u in dataset.units for r in dataset.sidecar(u).to_pylist() if r["number"] in CORRUPT}
    with stream(manifest_of(tmp_path / "damaged"), **one) as samples:
        found = [uid for batch in islice(samples, 6) for uid in batch["uid"]]
    for index, uid in enumerate(found):
        assert uid == next(following for following in order[index:] if following not in bad)


def test_read_once_leaves_corrupt_samples_out(tmp_path):
    stream_dataset(tmp_path / "damaged", corrupt=CORRUPT)
    expected = [n for n in range(90) if n % 11 != 5 and n not in CORRUPT]
    for workers in (0, 2):
        reader = read_once(
            manifest_of(tmp_path / "damaged"),
            preprocess=EVAL,
            tokenizer=letters,
            batch_size=20,
            workers=workers,
            columns=("number",),
        )
        found = list(reader)
        assert [number for batch in found for number in batch["number"]] == expected
        assert [len(batch["image"]) for batch in found] == [len(batch["uid"]) for batch in found] == [18, 17, 20, 19, 1]
        for batch in found:
            np.testing.assert_array_equal(batch["text"], letters([f"picture number {n}" for n in batch["number"]]))
        assert reader.stats["corrupt"] == len(CORRUPT)
        assert len(reader.corrupt_uids) == len(CORRUPT)


@pytest.mark.parametrize("where", ["local", "memory"])
def test_a_truncated_tar_loses_its_end_only(where, tmp_path):
    folder = str(tmp_path / "cut") if where == "local" else "memory://cut"
    dataset = stream_dataset(folder)
    name = dataset.units[2].shard_name
    data = dataset.store.read_bytes(name)
    end = dataset.sidecar(dataset.units[2])["image_offset"].to_pylist()[4] + 10
    dataset.store.write_bytes(name, data[:end])
    reader = read_once(manifest_of(folder), preprocess=EVAL, tokenizer=None, columns=("number",))
    lost = set(range(90)) - {n for batch in reader for n in batch["number"]} - {n for n in range(90) if n % 11 == 5}
    assert lost == {20, 21, 22, 23}
    assert reader.stats["corrupt"] == 4


def test_nothing_but_corrupt_samples_is_an_error(tmp_path):
    stream_dataset(tmp_path / "rotten", samples=20, corrupt=range(20))
    with stream(manifest_of(tmp_path / "rotten")) as samples, pytest.raises(ClipDataError, match="no readable sample"):
        next(samples)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_missing_tar_is_an_error_that_names_it(workers, tmp_path):
    dataset = stream_dataset(tmp_path / "hole")
    (tmp_path / "hole" / dataset.units[1].shard_name).unlink()
    with (
        stream(manifest_of(tmp_path / "hole"), workers=workers) as samples,
        pytest.raises(ClipDataError, match=r"cannot read .*/shards/00000001.tar: it does not exist"),
    ):
        list(islice(samples, 8))


def test_a_damaged_sidecar_is_an_error_that_names_it(tmp_path):
    stream_dataset(tmp_path / "hole")
    manifest = manifest_of(tmp_path / "hole")
    (tmp_path / "hole/shards/00000003.parquet").write_bytes(b"PAR1")
    with stream(manifest) as samples, pytest.raises(ClipDataError, match=r"00000003.parquet is damaged"):
        list(islice(samples, 8))


@pytest.mark.slow
def test_killed_workers_are_started_again_without_a_trace_in_the_batches(root):
    with stream(manifest_of(root)) as samples:
        expected = content(islice(samples, 12))
    others = set(children(os.getpid()))
    with stream(manifest_of(root), workers=2) as samples:
        found = [next(samples)]
        for step in range(1, 12):
            if step in (2, 6, 9):
                victims = sorted(set(children(os.getpid())) - others)
                assert len(victims) == 2
                os.kill(victims[step % 2], signal.SIGKILL)
            found.append(next(samples))
        assert content(found) == expected
        assert samples.stats["restarts"] == 3
    assert not set(children(os.getpid())) - others


@pytest.mark.slow
def test_a_stopped_worker_is_named_and_replaced(root, caplog):
    with stream(manifest_of(root)) as samples:
        expected = content(islice(samples, 8))
    others, stopped = set(children(os.getpid())), []
    with stream(manifest_of(root), workers=2) as samples:
        found = [next(samples)]
        stopped += sorted(set(children(os.getpid())) - others)[:1]
        os.kill(stopped[0], signal.SIGSTOP)
        found += [next(samples) for _ in range(7)]
        assert content(found) == expected
        assert samples.stats["restarts"] == 1
    assert re.search(
        rf"process {stopped[0]}, gave no batch within \d+ s and was stopped; starting it again", caplog.text
    )


@pytest.mark.slow
def test_a_worker_that_is_stopped_before_it_has_started_blocks_nothing(root, monkeypatch):
    def start_stopped(*args):
        process = start(*args)
        process.send_signal(signal.SIGSTOP)
        return process

    monkeypatch.setattr("clip_data.stream.engine.start", start_stopped)
    monkeypatch.setattr("clip_data.stream.engine.STOPPED_S", 0.1)
    wide = build_manifest([Source(dataset=str(root))] * 200)  # its plan does not fit into a pipe
    with (
        stream(wide, workers=1, global_batch_size=400) as samples,
        pytest.raises(
            ClipDataError, match=r"failed 4 times in a row; the last one, process \d+, gave no batch .* stopped"
        ),
    ):
        next(samples)


@pytest.mark.slow
def test_a_worker_that_gives_no_batch_is_an_error(root):
    with (
        stream(manifest_of(root), workers=1, tokenizer=sleepy, timeout=4.0) as samples,
        pytest.raises(
            ClipDataError, match=r"failed 4 times in a row; .* gave no batch within 1 s and was .*allow more"
        ),
    ):
        next(samples)


@pytest.mark.slow
def test_workers_that_keep_dying_are_an_error(root):
    with (
        stream(manifest_of(root), workers=1, tokenizer=deadly) as samples,
        pytest.raises(ClipDataError, match=r"failed 4 times in a row; .* died \(exit code -9\): if memory is short"),
    ):
        next(samples)


def test_a_bug_in_a_worker_shows_its_traceback(root):
    with (
        stream(manifest_of(root), workers=1, tokenizer=buggy) as samples,
        pytest.raises(RuntimeError, match=r"in buggy(.|\n)*IndexError"),
    ):
        next(samples)


def test_batches_stay_valid_while_they_are_held_and_after_the_stream_is_closed(root):
    with stream(manifest_of(root), workers=1) as samples:
        held = [next(samples)["image"] for _ in range(9)]
        copies = [images.copy() for images in held]
        late = next(samples)["image"][3]
        kept = late.copy()
        list(islice(samples, 6))
    for images, copy in zip([*held, late], [*copies, kept], strict=True):
        np.testing.assert_array_equal(images, copy)


PROGRAM = """
import sys
from clip_data.stream import SampleStream, Source, build_manifest
from tests.support.streams import EVAL, children, letters
import os, time
# No `if __name__ == "__main__"` here: workers must not run this file.
manifest = build_manifest([Source(dataset=sys.argv[1])])
stream = SampleStream(manifest, preprocess=EVAL, tokenizer=letters, global_batch_size=12, workers=2)
next(stream)
held = next(stream)
print(*children(os.getpid()), flush=True)
if sys.argv[2] == "wait":
    time.sleep(60)
"""


def start_program(root, tmp_path, how):
    (tmp_path / "program.py").write_text(PROGRAM)
    repository = Path(__file__).parents[3]
    return subprocess.Popen(
        [sys.executable, str(tmp_path / "program.py"), str(root), how],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(repository)},
        text=True,
    )


def test_workers_do_not_outlive_a_killed_parent(root, tmp_path):
    with start_program(root, tmp_path, "wait") as program:
        workers = list(map(int, program.stdout.readline().split()))
        assert len(workers) == 2
        assert all(map(alive, workers))
        program.kill()
        deadline = time.monotonic() + 10
        while any(map(alive, workers)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not any(map(alive, workers))


@pytest.mark.slow
def test_a_program_that_forgets_to_close_ends_cleanly(root, tmp_path):
    with start_program(root, tmp_path, "leave") as program:
        output, errors = program.communicate(timeout=60)
    assert program.returncode == 0
    assert errors == ""
    assert not any(map(alive, map(int, output.split())))
