"""The dataset folder: the plan, the ledger, tombstones, and whose data it is."""

import pyarrow as pa
import pytest

from clip_core import ClipError
from clip_data.dataset import Dataset, Unit
from clip_data.errors import ClipDataError
from clip_data.tables import write_table

UNITS = [Unit(ordinal=i, source="a.parquet", row_group=i, row_start=5, rows=7) for i in range(3)]
DESCRIPTION = {"sources": [{"url": "a.parquet", "rows": 21}], "columns": {"url": "url"}, "config": {"rows": 7}}


def test_names_lead_back_to_the_source_row():
    unit = Unit(ordinal=42, source="a", row_group=0, row_start=0, rows=10)
    assert unit.key(7) == "0000004200007"
    assert unit.shard_name == "shards/00000042.tar"
    assert unit.sidecar_name == "shards/00000042.parquet"
    assert unit.column_name("caption") == "columns/caption/00000042.parquet"


def test_a_plan_is_written_once_and_opened_again(tmp_path):
    made = Dataset.create(str(tmp_path), UNITS, DESCRIPTION)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    again = Dataset.create(str(tmp_path), UNITS, DESCRIPTION)
    assert again.units == Dataset.open(str(tmp_path)).units == made.units == UNITS
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_another_run_s_data_is_refused_and_kept(tmp_path):
    Dataset.create(str(tmp_path), UNITS, DESCRIPTION)
    with pytest.raises(ClipError, match=r"another dataset: config.rows is 7 there and 9 now; choose another"):
        Dataset.create(str(tmp_path), UNITS[:1], {**DESCRIPTION, "config": {"rows": 9}})
    assert Dataset.open(str(tmp_path)).units == UNITS


def test_a_plan_killed_half_way_is_planned_again(tmp_path):
    Dataset.create(str(tmp_path), UNITS[:1], DESCRIPTION)
    (tmp_path / "dataset.json").unlink()  # written last
    assert Dataset.create(str(tmp_path), UNITS, DESCRIPTION).units == UNITS


def test_folders_that_hold_no_dataset(tmp_path):
    with pytest.raises(ClipError, match="holds no dataset"):
        Dataset.open(str(tmp_path))
    (tmp_path / "dataset.json").write_text('{"format": 99}')
    with pytest.raises(ClipError, match="dataset format 99; this version reads 1"):
        Dataset.open(str(tmp_path))
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(ClipError, match=r"dataset.json is damaged"):
        Dataset.open(str(tmp_path))


def test_the_ledger_knows_what_is_done(tmp_path):
    dataset = Dataset.create(str(tmp_path), UNITS, DESCRIPTION)
    assert dataset.pending("acquire") == UNITS
    fingerprint = dataset.open_stage("acquire", {"size": 256})
    dataset.commit("acquire", UNITS[1], {"unit": UNITS[1].name})
    assert dataset.committed("acquire") == {"00000001"}
    assert dataset.pending("acquire") == [UNITS[0], UNITS[2]]
    assert dataset.record("acquire", UNITS[1]) == {"unit": "00000001"}
    assert dataset.open_stage("acquire", {"size": 256}) == fingerprint
    with pytest.raises(ClipDataError, match="acquire results of another config: size is 256 there and 128 now"):
        dataset.open_stage("acquire", {"size": 128})
    assert dataset.pending("score-caption") == UNITS


def test_tombstones_are_only_ever_added(tmp_path):
    dataset = Dataset.create(str(tmp_path), UNITS, DESCRIPTION)
    first, second = "00" * 16, "ff" * 16
    names = [dataset.take_down([first], "asked by its author"), dataset.take_down([second, first], "again")]
    assert sorted(names) == dataset.store.list("tombstones")
    assert dataset.take_down([first, second], "again") == names[1]  # the same takedown is the same file
    assert len(dataset.store.list("tombstones")) == 2
    assert dataset.taken_down() == {bytes.fromhex(first), bytes.fromhex(second)}
    for wrong in ([], ["abcd"], ["no hex"]):
        with pytest.raises(ClipDataError, match="uids of 32 hex digits"):
            dataset.take_down(wrong, "")
    assert len(dataset.taken_down()) == 2


def test_selections_count_when_they_are_finished(tmp_path):
    dataset = Dataset.create(str(tmp_path), UNITS, DESCRIPTION)
    write_table(dataset.store, "selections/train/00000000.parquet", pa.table({"row": pa.array([0], pa.int32())}))
    write_table(dataset.store, "columns/caption/00000000.parquet", pa.table({"words": [1]}))
    assert dataset.selections() == []
    dataset.store.write_json("selections/train/selection.json", {})
    assert dataset.selections() == ["train"]
    assert dataset.column_sets() == ["caption"]
