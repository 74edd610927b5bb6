"""clip_data.select.dedup against a dictionary."""

import numpy as np
import pyarrow as pa
import pytest

from clip_data.select import dedup
from clip_data.select.dedup import HashBuckets, hash_keys


@pytest.mark.parametrize("words", [1, 2])
@pytest.mark.parametrize("per_bucket", [1 << 20, 50])
def test_the_first_of_equals_is_kept(tmp_path, monkeypatch, words, per_bucket):
    monkeypatch.setattr(dedup, "ROWS_PER_BUCKET", per_bucket)
    rng = np.random.default_rng(0)
    keys = rng.integers(0, 2**64, (700, words), dtype=np.uint64)[rng.integers(0, 700, 2000)]
    keys[::7, 0] = 0  # with two words: equal first halves
    rows = np.sort(rng.choice(10_000, 2000, replace=False))
    seen, wanted = set(), set()
    for row, key in zip(rows.tolist(), map(tuple, keys.tolist()), strict=True):
        (wanted if key in seen else seen).add(row if key in seen else key)
    with HashBuckets(tmp_path, 2000) as buckets:
        assert buckets.count == (1 if per_bucket > 2000 else 40)
        for start in range(0, 2000, 333):
            buckets.add(rows[start : start + 333], keys[start : start + 333])
        found = np.concatenate(list(buckets.duplicates()))
        sizes = [path.stat().st_size for path in buckets.paths]
    assert len(found) == len(wanted)
    assert set(found.tolist()) == wanted
    assert sum(sizes) == 2000 * 8 * (1 + words)


def test_hashes_that_look_alike_are_spread(tmp_path, monkeypatch):
    monkeypatch.setattr(dedup, "ROWS_PER_BUCKET", 100)
    keys = (np.uint64(1) << np.uint64(63)) | np.arange(5000, dtype=np.uint64)  # as phash: the top bit always set
    with HashBuckets(tmp_path, 5000) as buckets:
        buckets.add(np.arange(5000), keys.reshape(-1, 1))
        assert sum(len(rows) for rows in buckets.duplicates()) == 0
        sizes = [path.stat().st_size / 16 for path in buckets.paths]
    assert max(sizes) < 200


def test_keys_of_missing_hashes_are_left_out():
    has_hash, keys = hash_keys(pa.chunked_array([pa.array([5, None, 2**64 - 1], pa.uint64())]))
    assert has_hash.tolist() == [True, False, True]
    assert keys.tolist() == [[5], [2**64 - 1]]
    digests = [bytes(15) + b"\1" + bytes(16), None, bytes(16) + b"\1" * 16, bytes(32)]
    has_hash, keys = hash_keys(pa.chunked_array([pa.array(digests, pa.binary(32))]))
    assert has_hash.tolist() == [True, False, True, True]
    assert keys[0].tolist() != keys[1].tolist() == keys[2].tolist() == [0, 0]
