import os
import signal
import time
from itertools import islice

import numpy as np
import pytest

from clip_data.errors import ClipDataError
from clip_data.stream import Source, build_manifest, read_once
from clip_data.stream.preprocess import Preprocess
from tests.support.streams import EVAL, alive, children, letters, stream_dataset

CORRUPT = (3, 4, 30, 31, 32, 77, 89)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    folder = tmp_path_factory.mktemp("once") / "data"
    stream_dataset(folder, corrupt=CORRUPT)
    return build_manifest([Source(dataset=str(folder))])


def reader(manifest, **options):
    defaults = {"preprocess": EVAL, "tokenizer": letters, "batch_size": 8, "columns": ("number",)}
    return read_once(manifest, **{**defaults, **options})


def numbers_of(batches):
    return [number for batch in batches for number in batch["number"]]


@pytest.mark.parametrize("world", [1, 2, 3, 4, 20])
def test_the_ranks_share_the_batches_and_each_decodes_its_own_alone(manifest, world, monkeypatch):
    decoded = []
    decode = Preprocess.decode
    monkeypatch.setattr(Preprocess, "decode", lambda self, *args: decoded.append(args) or decode(self, *args))
    whole = dict(reader(manifest).numbered())
    found, each, corrupt = {}, [], 0
    for rank in range(world):
        decoded.clear()
        part = reader(manifest, rank=rank, world_size=world)
        mine = dict(part.numbered())
        assert not mine.keys() & found.keys()
        found |= mine
        each.append(len(decoded))
        corrupt += part.stats["corrupt"]
    assert list(whole) == sorted(found) == list(range(11))
    assert numbers_of(found[number] for number in sorted(found)) == numbers_of(whole.values())
    for number, batch in whole.items():
        np.testing.assert_array_equal(found[number]["image"], batch["image"])
    assert sum(each) == manifest.samples - 3  # the third kind of damage leaves no byte to decode
    assert max(each) <= 8 * -(-11 // world)
    assert corrupt == len(CORRUPT)


def test_a_batch_is_short_where_samples_are_corrupt_and_may_be_empty(tmp_path):
    stream_dataset(tmp_path / "data", samples=12, corrupt=(4, 6, 7, 8))  # row 5 was rejected
    part = reader(build_manifest([Source(dataset=str(tmp_path / "data"))]), batch_size=4)
    assert [(number, batch["number"]) for number, batch in part.numbered()] == [
        (0, [0, 1, 2, 3]),
        (1, []),
        (2, [9, 10, 11]),
    ]
    assert [len(batch["image"]) for batch in part] == [4, 3]


@pytest.mark.slow
def test_kept_workers_serve_every_pass_and_end_with_the_reader(manifest):
    expected = numbers_of(reader(manifest))
    before = set(children(os.getpid()))
    kept = reader(manifest, workers=2, keep_workers=True)
    seen = set()
    for _ in range(3):
        assert numbers_of(kept) == expected
        assert kept.stats["samples"] == len(expected)
        assert kept.stats["corrupt"] == len(CORRUPT)
        seen |= set(children(os.getpid())) - before
    assert len(seen) == 2
    assert kept.stats["restarts"] == 0
    kept.close()
    assert not any(map(alive, seen))
    assert numbers_of(kept) == expected  # and starts again
    kept.close()


@pytest.mark.slow
def test_workers_that_are_not_kept_end_with_the_pass(manifest):
    before = set(children(os.getpid()))
    list(reader(manifest, workers=1))
    assert set(children(os.getpid())) == before


@pytest.mark.slow
def test_a_pass_that_was_left_does_not_disturb_the_next(manifest):
    for workers in (0, 1):
        kept = reader(manifest, workers=workers, keep_workers=True)
        assert len(list(islice(kept, 2))) == 2
        assert numbers_of(kept) == numbers_of(reader(manifest))
        kept.close()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_kept_worker_that_is_killed_or_stopped_between_two_passes_is_replaced(manifest, number, caplog):
    before = set(children(os.getpid()))
    kept = reader(manifest, workers=1, keep_workers=True)
    expected = numbers_of(kept)
    (pid,) = set(children(os.getpid())) - before
    os.kill(pid, number)
    started = time.monotonic()
    assert numbers_of(kept) == expected
    assert time.monotonic() - started < 30
    assert kept.stats["restarts"] == 1
    assert f"process {pid}" in caplog.text
    assert not alive(pid)
    kept.close()


class Cutting:
    """A tokenizer of eight letters that tells which captions it cuts."""

    def __call__(self, captions):
        return letters(captions)[:, :16]

    def truncated(self, captions, tokens):
        assert tokens.shape == (len(captions), 16)
        return [row for row, caption in enumerate(captions) if len(caption) > 16]


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_captions_that_a_tokenizer_cuts_are_counted(manifest, workers):
    part = reader(manifest, tokenizer=Cutting(), workers=workers)
    found = numbers_of(part)
    # "picture number 9" has 16 letters.
    assert part.stats["truncated"] == sum(number > 9 for number in found)
    assert len(list(part.numbers)) == 11


def test_ranks_that_do_not_exist_are_refused(manifest):
    with pytest.raises(ClipDataError, match="rank = 2 must be at least 0 and below world_size = 2"):
        reader(manifest, rank=2, world_size=2)
