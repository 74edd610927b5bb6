import os
from collections import Counter
from itertools import islice

import numpy as np
import pyarrow as pa
import pytest

from clip_core import ClipError
from clip_data.errors import ClipDataError
from clip_data.stream import SampleStream, Source, build_manifest, read_once
from clip_data.stream.preprocess import parse_preprocess
from clip_data.tables import write_table
from tests.support.datasets import jpeg
from tests.support.streams import EVAL, TRAIN, content, letters, make_image, stream_dataset

BATCH = 12  # with 4 canonical streams


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stream") / "data"
    stream_dataset(folder)
    return str(folder)


@pytest.fixture(scope="module")
def manifest(root):
    return build_manifest([Source(dataset=root)])


def stream(manifest, **options):
    defaults = {"preprocess": TRAIN, "tokenizer": letters, "global_batch_size": BATCH, "seed": 3, "workers": 0}
    return SampleStream(manifest, **{**defaults, **options})


def batches(manifest, count, **options):
    with stream(manifest, **options) as samples:
        return list(islice(samples, count))


def global_batches(manifest, count, world=1, **options):
    """The ranks' batches, concatenated in rank order."""
    ranks = [batches(manifest, count, rank=rank, world_size=world, **options) for rank in range(world)]
    return [
        {
            "uid": [uid for part in parts for uid in part["uid"]],
            **{name: np.concatenate([part[name] for part in parts]) for name in ("image", "text")},
        }
        for parts in zip(*ranks, strict=True)
    ]


@pytest.fixture(scope="module")
def reference(manifest):
    return content(batches(manifest, 20))


@pytest.mark.slow
@pytest.mark.parametrize(("world", "workers"), [(1, 1), (1, 3), (2, 0), (2, 3), (4, 0), (4, 1)])
def test_global_batches_depend_neither_on_ranks_nor_on_workers(manifest, reference, world, workers):
    assert content(global_batches(manifest, 20, world, workers=workers)) == reference


def test_batches_are_as_promised(manifest):
    batch = batches(manifest, 1)[0]
    assert batch["image"].shape == (BATCH, 3, 16, 16)
    assert batch["image"].dtype == np.uint8
    assert batch["text"].shape == (BATCH, 24)
    assert batch["text"].dtype == np.int64
    assert all(len(bytes.fromhex(uid)) == 16 for uid in batch["uid"])
    words = batches(manifest, 1, tokenizer=None)[0]["text"]
    np.testing.assert_array_equal(letters(words), batch["text"])
    plain = batches(manifest, 1, preprocess=EVAL)[0]
    number = int(words[5].removeprefix("picture number "))
    expected = parse_preprocess(EVAL).decode(jpeg(make_image(number)))
    np.testing.assert_array_equal(plain["image"][5], expected.transpose(2, 0, 1))


def test_seed_and_manifest_change_the_batches(manifest, reference, tmp_path):
    stream_dataset(tmp_path / "other", seed=1)
    other = build_manifest([Source(dataset=str(tmp_path / "other"))])
    for changed in (batches(manifest, 2, seed=4), batches(other, 2)):
        assert content(changed)[0][1] != reference[0][1]


@pytest.mark.parametrize("step", [1, 6, 7, 13, 19])
def test_a_run_resumes_at_any_step_on_another_world_size(manifest, reference, step):
    with stream(manifest, world_size=2, rank=1) as samples:
        for _ in range(step):
            next(samples)
        state = samples.state_dict()
    assert state["step"] == step
    assert content(global_batches(manifest, 20 - step, world=4, start_step=step)) == reference[step:]
    with stream(manifest) as samples:
        next(samples)
        samples.load_state_dict(state)
        assert content(islice(samples, 20 - step)) == reference[step:]


def test_workers_start_over_from_a_loaded_state(manifest, reference):
    with stream(manifest, workers=1) as samples:
        state = samples.state_dict()
        list(islice(samples, 3))
        samples.load_state_dict(state)
        assert content(islice(samples, 2)) == reference[:2]


def test_a_far_step_is_reached_at_once(manifest):
    far = content(batches(manifest, 2, start_step=10**9))
    assert far[1] == content(batches(manifest, 1, start_step=10**9 + 1))[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 4}, "seed = 3, this stream has 4"),
        ({"global_batch_size": 16}, "global_batch_size = 12, this stream has 16"),
        ({"canonical_streams": 2}, "canonical_streams = 4, this stream has 2"),
    ],
)
def test_a_state_of_another_order_is_refused(manifest, change, message):
    state = stream(manifest).state_dict()
    with pytest.raises(ClipDataError, match=message):
        stream(manifest, **change).load_state_dict(state)


def test_a_state_of_other_data_is_refused(manifest, tmp_path):
    stream_dataset(tmp_path / "other", seed=1)
    other = stream(build_manifest([Source(dataset=str(tmp_path / "other"))]))
    with pytest.raises(ClipDataError, match="manifest = "):
        other.load_state_dict(stream(manifest).state_dict())
    with pytest.raises(ClipDataError, match="step = None must be an integer"):
        other.load_state_dict({**other.state_dict(), "step": None})


@pytest.mark.parametrize("size", [12, 41, 82])
def test_each_sample_is_seen_once_an_epoch(manifest, size):
    everyone = [uid for batch in read_once(manifest, preprocess=EVAL, tokenizer=None) for uid in batch["uid"]]
    assert len(everyone) == 82
    epochs = np.lcm(82, size) // 82
    seen = Counter(
        uid
        for batch in batches(manifest, 82 * epochs // size, global_batch_size=size, preprocess=EVAL)
        for uid in batch["uid"]
    )
    assert seen == dict.fromkeys(everyone, epochs)


def test_sources_are_mixed_by_their_weights(manifest, root, tmp_path):
    stream_dataset(tmp_path / "small", samples=20, seed=1)
    mixed = build_manifest([Source(dataset=root, weight=3.0), Source(dataset=str(tmp_path / "small"))])
    small = {
        uid
        for batch in read_once(
            build_manifest([Source(dataset=str(tmp_path / "small"))]), preprocess=EVAL, tokenizer=letters
        )
        for uid in batch["uid"]
    }
    # The two datasets share captions and URLs, and therefore uids: images tell them apart.
    found = batches(mixed, 40, preprocess=EVAL)
    assert small <= {uid for batch in found for uid in batch["uid"]}
    images = {
        image_bytes(batch, index): name
        for name, source in (("large", root), ("small", str(tmp_path / "small")))
        for batch in read_once(build_manifest([Source(dataset=source)]), preprocess=EVAL, tokenizer=None)
        for index in range(len(batch["uid"]))
    }
    per_batch = [Counter(images[image_bytes(batch, index)] for index in range(BATCH))["small"] for batch in found]
    assert per_batch == [BATCH // 4] * 40
    assert content(global_batches(mixed, 8, world=4, preprocess=EVAL)) == content(found[:8])
    drawn = Counter(image_bytes(batch, index) for batch in found for index in range(BATCH))
    times = [count for key, count in drawn.items() if images[key] == "small"]
    assert max(times) - min(times) <= 1  # 120 draws of 18 samples, without replacement


def image_bytes(batch, index):
    return batch["image"][index].tobytes()


def test_each_rank_reads_its_own_share(manifest):
    def read(**options):
        with stream(manifest, **options) as samples:
            list(islice(samples, 14))
            return samples.stats["bytes_read"]

    shares = [read(rank=rank, world_size=4) for rank in range(4)]
    assert sum(shares) == read()
    assert max(shares) < 1.1 * sum(shares) / 4


def test_open_files_stay_few_and_are_closed(manifest, monkeypatch):
    monkeypatch.setattr("clip_data.stream.read.MAX_OPEN", 3)
    files = lambda: len(os.listdir("/proc/self/fd"))  # noqa: E731
    before = files()
    with stream(manifest) as samples:
        for _ in range(30):
            next(samples)
            assert files() <= before + 3
    assert files() == before
    with pytest.raises(ClipDataError, match="the stream is closed"):
        next(samples)


def test_memory_of_other_file_systems_serves_the_same_batches(reference):
    stream_dataset("memory://streams/data")
    manifest = build_manifest([Source(dataset="memory://streams/data")])
    assert content(batches(manifest, 20)) == reference


def test_worker_processes_read_through_fsspec(root, reference):
    manifest = build_manifest([Source(dataset=f"simplecache::file://{root}")])
    assert not manifest.parts[0].selection.store.local
    assert content(batches(manifest, 4, workers=1)) == reference[:4]


def test_read_once_reads_everything_in_order(manifest):
    expected = [f"picture number {number}" for number in range(90) if number % 11 != 5]
    reader = read_once(manifest, preprocess=EVAL, tokenizer=None, batch_size=30, columns=("number", "url"))
    found = list(reader)
    assert [len(batch["uid"]) for batch in found] == [len(batch["image"]) for batch in found] == [30, 30, 22]
    assert [text for batch in found for text in batch["text"]] == expected
    assert [f"picture number {number}" for batch in found for number in batch["number"]] == expected
    assert found[0]["url"][0].startswith("http://")
    assert content(reader) == content(found)
    threaded = read_once(manifest, preprocess=EVAL, tokenizer=letters, batch_size=30, workers=2)
    assert [images for _, images, _ in content(threaded)] == [images for _, images, _ in content(found)]


def test_read_once_of_several_sources_keeps_their_order(manifest, root):
    twice = build_manifest([Source(dataset=root), Source(dataset=root, weight=9.0)])
    single = [uid for batch in read_once(manifest, preprocess=EVAL, tokenizer=None) for uid in batch["uid"]]
    double = [uid for batch in read_once(twice, preprocess=EVAL, tokenizer=None) for uid in batch["uid"]]
    assert double == single * 2


def half(captions):
    return letters(captions)[:-1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"global_batch_size": 83}, "82 samples, fewer than a global batch of 83"),
        ({"world_size": 3}, "world_size=3 does not divide the 4 canonical streams"),
        ({"workers": -1}, "workers = -1 must be an integer of at least 0"),
        ({"start_step": 1.5}, "start_step = 1.5 must be an integer"),
        ({"preprocess": {"size": [8, 8], "resize": 1}}, "unknown key resize"),
        ({"tokenizer": half}, r"integer ndarray of shape \[n, context\], not ndarray int64 \(0, 24\)"),
        ({"tokenizer": lambda texts: [[1]] * len(texts)}, "not list"),
        ({"tokenizer": lambda texts: letters(texts) / 2}, "not ndarray float64"),
        ({"tokenizer": lambda texts: letters(texts), "workers": 1}, "cannot be sent to worker processes"),
    ],
)
def test_bad_values_are_refused(manifest, change, message):
    with pytest.raises(ClipError, match=message):
        stream(manifest, **change)


def test_bad_values_of_read_once_are_refused(manifest):
    with pytest.raises(ClipDataError, match="batch_size = 0"):
        read_once(manifest, preprocess=EVAL, tokenizer=None, batch_size=0)
    with pytest.raises(ClipDataError, match="columns: uid is always part of a batch"):
        read_once(manifest, preprocess=EVAL, tokenizer=None, columns=("uid",))
    with pytest.raises(ClipDataError, match="has no column 'labl'; it has uid, key"):
        read_once(manifest, preprocess=EVAL, tokenizer=None, columns=("labl",))
    with pytest.raises(ClipDataError, match=r"has no columns/clusters/00000000.parquet, which holds .* clusters.id"):
        stream(manifest, columns=("clusters.id",))


def test_ordinals_and_columns_belong_to_the_sample(tmp_path, root):
    other = stream_dataset(tmp_path / "data", seed=1)
    for unit in other.units:
        rows = pa.table({"id": [f"{unit.ordinal}-{row}" for row in range(unit.rows)]})
        write_table(other.store, unit.column_name("clusters"), rows)
    manifest = build_manifest([Source(dataset=root), Source(dataset=str(tmp_path / "data"))])
    plain = list(read_once(manifest, preprocess=EVAL, tokenizer=None))
    ordinals = np.concatenate([batch["ordinal"] for batch in plain])
    assert ordinals.tolist() == list(range(manifest.samples))
    numbers = [text for batch in plain for text in batch["text"]]

    half = build_manifest([Source(dataset=str(tmp_path / "data"))])
    for workers in (0, 2):
        for batch in batches(half, 14, tokenizer=None, columns=("number", "clusters.id"), workers=workers):
            assert batch["ordinal"].dtype == np.int64
            for text, ordinal, number, cluster in zip(
                *(batch[name] for name in ("text", "ordinal", "number", "clusters.id")), strict=True
            ):
                assert text == numbers[manifest.samples // 2 + ordinal] == f"picture number {number}"
                assert cluster == f"{number // 8}-{number % 8}"
