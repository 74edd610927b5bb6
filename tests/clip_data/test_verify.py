"""Verification finds each kind of planted damage, names the file, and says what to do."""

import hashlib
import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clip_data.dataset import Dataset
from clip_data.executors import ExecutorConfig, LocalExecutor
from clip_data.score import ScoreStage
from clip_data.select import SelectConfig, select
from clip_data.stage import run_stage, run_unit
from clip_data.verify import verify
from tests.support.datasets import make_dataset, make_image

UNIT = "00000001"
AGAIN = f"delete commits/acquire/{UNIT}.json and run 'clip-data acquire' again"


@pytest.fixture
def root(tmp_path) -> Path:
    """A dataset of two units with a score and a selection, and nothing wrong."""
    rows = [{"image": make_image(i, (24, 16)) if i % 4 else None, "caption": f"picture {i}"} for i in range(10)]
    dataset = make_dataset(tmp_path, rows, rows_per_unit=5)
    stage = ScoreStage(dataset.url, "caption")
    for unit in dataset.units:
        dataset.open_stage(stage.name, stage.config)
        run_unit(dataset.url, stage, unit)
    select(dataset, SelectConfig(name="train"))
    assert verify(dataset.url, deep=True) == []
    return tmp_path


def found(root: Path, deep: bool) -> list[str]:
    return [str(problem) for problem in verify(str(root), deep)]


def edit_table(root: Path, name: str, change) -> None:
    """Changes a parquet file; as if a faulty program had written it, its commit record agrees with it."""
    pq.write_table(change(pq.read_table(root / name)), root / name)
    recommit(root, name)


def recommit(root: Path, name: str) -> None:
    for record in root.glob(f"commits/*/{UNIT}.json"):
        content = json.loads(record.read_text())
        if name in content["files"]:
            data = (root / name).read_bytes()
            content["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            record.write_text(json.dumps(content))


def replace(table: pa.Table, name: str, row: int, value) -> pa.Table:
    column = table[name].to_pylist()
    column[row] = value
    return table.set_column(table.column_names.index(name), name, pa.array(column, table.schema.field(name).type))


def test_a_missing_or_shortened_file(root):
    shard, sidecar = root / "shards" / f"{UNIT}.tar", root / "shards" / f"{UNIT}.parquet"
    size = shard.stat().st_size
    shard.write_bytes(shard.read_bytes()[:-100])
    sidecar.unlink()
    for deep in (False, True):
        assert found(root, deep)[:2] == [
            f"shards/{UNIT}.parquet: the file is missing; {AGAIN}",
            f"shards/{UNIT}.tar: {size - 100} bytes instead of {size}; {AGAIN}",
        ]


def test_a_flipped_byte_needs_the_deep_look(root):
    shard = root / "shards" / f"{UNIT}.tar"
    data = bytearray(shard.read_bytes())
    data[600] ^= 1
    shard.write_bytes(data)
    assert found(root, False) == []
    (line,) = found(root, True)
    assert line.startswith(f"shards/{UNIT}.tar: sha256 ")
    assert line.endswith(AGAIN)


def test_scores_name_their_own_way_out(root):
    column = root / "columns" / "caption" / f"{UNIT}.parquet"
    column.write_bytes(column.read_bytes() + b"x")
    (line,) = found(root, False)
    assert line.startswith(f"columns/caption/{UNIT}.parquet: ")
    assert line.endswith(f"delete commits/score-caption/{UNIT}.json and run 'clip-data score' again")


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda t: replace(t, "image_offset", 1, 512 * 9), "where the sidecar has 0000000100001.jpg of"),
        (lambda t: replace(t, "text_length", 1, 1), "where the sidecar has 0000000100001.txt of 1 bytes"),
        (lambda t: replace(t, "uid", 2, b"0" * 16), "row 2 (key 0000000100002): the uid is not that of its URL"),
        (lambda t: replace(t, "caption", 0, "other"), "row 0 (key 0000000100000): the uid is not that of its URL"),
        (lambda t: replace(t, "key", 0, "0000000100009"), "row 0 has key '0000000100009' instead of '0000000100000'"),
        (lambda t: replace(t, "status", 1, "rejected"), "3 successes, 4 in the commit record"),
        (lambda t: t.slice(1), "4 rows instead of 5"),
        (lambda t: t.drop_columns(["uid"]), "has no column 'uid'"),
    ],
)
def test_a_sidecar_that_disagrees_with_the_shard_or_with_itself(root, change, what):
    edit_table(root, f"shards/{UNIT}.parquet", change)
    assert found(root, False) == []
    lines = found(root, True)
    assert what in lines[0]
    assert lines[0].endswith(AGAIN)


def test_a_shard_with_other_members(root):
    shard = root / "shards" / f"{UNIT}.tar"
    with tarfile.open(shard, "a") as tar:
        tar.addfile(tarfile.TarInfo("stowaway.jpg"), io.BytesIO())
    recommit(root, f"shards/{UNIT}.tar")
    assert found(root, True) == [f"shards/{UNIT}.tar: 13 members, the sidecar has 12; {AGAIN}"]
    shard.write_bytes(b"no tar" * 200)
    recommit(root, f"shards/{UNIT}.tar")
    assert f"shards/{UNIT}.tar: not a tar file" in found(root, True)[0]


def test_columns_with_other_rows(root):
    edit_table(root, f"columns/caption/{UNIT}.parquet", lambda table: table.slice(2))
    (line,) = found(root, True)
    assert line.startswith(f"columns/caption/{UNIT}.parquet: 3 rows instead of 5; delete commits/score-caption/")


@pytest.mark.parametrize(
    ("rows", "what"),
    [
        ([1, 5], "row 5 does not exist: the unit has 5"),
        ([-1, 1], "row -1 does not exist"),
        ([2, 1], "the rows are not in ascending order"),
        ([1, 1], "the rows are not in ascending order"),
        ([1, 3], "row 3 is not a sample: it was rejected"),
        ([1], "1 rows instead of 4"),
    ],
)
def test_selections_with_rows_that_cannot_be(root, rows, what):
    pq.write_table(pa.table({"row": pa.array(rows, pa.int32())}), root / "selections" / "train" / f"{UNIT}.parquet")
    (line,) = found(root, True)
    assert line.startswith(f"selections/train/{UNIT}.parquet: {what}")
    assert line.endswith("delete selections/train and run 'clip-data select' for train again")


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda record: record.pop("files"), "damaged commit record"),
        (lambda record: record.update(rows=9), "does not fit its unit"),
        (lambda record: record["counts"].update(success=9), "does not fit its unit"),
        (lambda record: record.update(fingerprint="0" * 32), "does not fit its unit or its stage"),
    ],
)
def test_a_commit_record_that_is_wrong(root, change, what):
    record = root / "commits" / "acquire" / f"{UNIT}.json"
    content = json.loads(record.read_text())
    change(content)
    record.write_text(json.dumps(content))
    line = found(root, False)[0]
    assert line.startswith(f"commits/acquire/{UNIT}.json: ")
    assert what in line
    record.write_text("{")
    assert "is damaged: not JSON" in found(root, False)[0]


def test_records_and_selections_of_units_that_are_not_planned(root):
    (root / "commits" / "acquire" / "00000007.json").write_text("{}")
    pq.write_table(pa.table({"row": pa.array([0], pa.int32())}), root / "selections" / "train" / "00000007.parquet")
    assert found(root, False) == [
        "commits/acquire/00000007.json: the plan has no such unit; delete commits/acquire/00000007.json",
        "selections/train/00000007.parquet: the plan has no such unit; "
        "delete selections/train and run 'clip-data select' for train again",
    ]


def test_a_selection_with_missing_or_damaged_files(root):
    (root / "selections" / "train" / f"{UNIT}.parquet").unlink()
    (line,) = found(root, False)
    assert line.startswith(f"selections/train/{UNIT}.parquet: the file is missing; delete selections/train")
    (root / "selections" / "train" / "selection.json").write_text("{}")
    (line,) = found(root, False)
    assert line.startswith("selections/train/selection.json: damaged description (KeyError('units')); delete")


def test_the_advice_works(root):
    column = root / "columns" / "caption" / f"{UNIT}.parquet"
    whole = column.read_bytes()
    column.write_bytes(whole[:-1])
    (root / "commits" / "score-caption" / f"{UNIT}.json").unlink()
    stage = ScoreStage(str(root), "caption")
    with LocalExecutor(ExecutorConfig(workers=1)) as executor:
        run_stage(Dataset.open(str(root)), stage, executor, progress=False)
    assert found(root, True) == []
    assert column.read_bytes() == whole
