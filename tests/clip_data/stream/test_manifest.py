import shutil

import pytest

from clip_data.dataset import Dataset
from clip_data.errors import ClipDataError
from clip_data.select import SelectConfig, select
from clip_data.stream import Source, build_manifest, read_once
from tests.support.streams import EVAL, stream_dataset


def manifest_of(root, **options):
    return build_manifest([Source(dataset=str(root), **options)])


def uids(manifest):
    return [uid for batch in read_once(manifest, preprocess=EVAL, tokenizer=None) for uid in batch["uid"]]


def test_a_manifest_counts_the_successful_samples(tmp_path):
    dataset = stream_dataset(tmp_path / "a")
    manifest = manifest_of(tmp_path / "a")
    assert len(manifest) == manifest.samples == 90 - 8
    kept = [row for unit in dataset.units for row in dataset.sidecar(unit).to_pylist() if row["status"] == "success"]
    assert uids(manifest) == [row["uid"].hex() for row in kept]


def test_the_fingerprint_follows_the_data_and_not_its_place(tmp_path):
    stream_dataset(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "moved")
    stream_dataset(tmp_path / "other", seed=1)
    first = manifest_of(tmp_path / "a").fingerprint
    assert manifest_of(f"{tmp_path}/moved/").fingerprint == first
    assert manifest_of(f"file://{tmp_path}/moved").fingerprint == first
    assert manifest_of(tmp_path / "other").fingerprint != first
    both = [Source(dataset=str(tmp_path / name)) for name in ("a", "other")]
    heavier = [both[0], Source(dataset=both[1].dataset, weight=2.0)]
    found = {build_manifest(sources).fingerprint for sources in (both, both[::-1], heavier)}
    assert len({*found, first}) == 4


def test_a_selection_narrows_the_manifest(tmp_path):
    dataset = stream_dataset(tmp_path / "a")
    select(dataset, SelectConfig(name="few", where="number >= 40 and number < 60"))
    manifest = manifest_of(tmp_path / "a", selection="few")
    assert manifest.samples == 19
    assert manifest.fingerprint != manifest_of(tmp_path / "a").fingerprint
    batches = list(read_once(manifest, preprocess=EVAL, tokenizer=None, batch_size=5, columns=("number",)))
    assert [n for batch in batches for n in batch["number"]] == [n for n in range(40, 60) if n % 11 != 5]


def test_taken_down_samples_leave_the_stream(tmp_path):
    dataset = stream_dataset(tmp_path / "a")
    before = manifest_of(tmp_path / "a")
    everyone = uids(before)
    dataset.take_down(["00" * 16], reason="of another dataset")
    assert manifest_of(tmp_path / "a").fingerprint == before.fingerprint
    gone = [everyone[3], *everyone[7:14]]  # the second list holds a whole unit
    dataset.take_down(gone, reason="asked")
    after = manifest_of(tmp_path / "a")
    assert after.fingerprint != before.fingerprint
    assert after.samples == before.samples - len(gone)
    assert uids(after) == [uid for uid in everyone if uid not in gone]


def test_which_samples_were_taken_down_is_part_of_the_fingerprint(tmp_path):
    stream_dataset(tmp_path / "0")
    first, second = uids(manifest_of(tmp_path / "0"))[:2]  # of one unit, whose count is the same without either
    shutil.copytree(tmp_path / "0", tmp_path / "1")
    found = set()
    for folder, uid in (("0", first), ("1", second)):
        Dataset.open(str(tmp_path / folder)).take_down([uid], reason="asked")
        found.add(manifest_of(tmp_path / folder).fingerprint)
    assert len(found) == 2


def test_without_tombstones_no_sidecar_is_read(tmp_path, monkeypatch):
    dataset = stream_dataset(tmp_path / "a")
    select(dataset, SelectConfig(name="all"))
    monkeypatch.setattr("clip_data.dataset.Dataset.sidecar", lambda *_: pytest.fail("read a sidecar"))
    assert manifest_of(tmp_path / "a", selection="all").samples == 82


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(ClipDataError, match="at least one source"):
        build_manifest([])
    with pytest.raises(ClipDataError, match="nowhere holds no dataset"):
        manifest_of(tmp_path / "nowhere")
    dataset = stream_dataset(tmp_path / "a", samples=5)
    with pytest.raises(ClipDataError, match="has no selection 'train'; it has none"):
        manifest_of(tmp_path / "a", selection="train")
    with pytest.raises(ClipDataError, match="weight must be a positive number, not 0"):
        manifest_of(tmp_path / "a", weight=0.0)
    dataset.take_down(uids(manifest_of(tmp_path / "a")), reason="all of it")
    with pytest.raises(ClipDataError, match="the whole dataset keeps no sample"):
        manifest_of(tmp_path / "a")
