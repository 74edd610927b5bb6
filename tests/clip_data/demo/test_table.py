import hashlib
import subprocess
import sys
from collections import Counter

import pyarrow.parquet as pq
import pytest

from clip_core import ClipError
from clip_data.demo import KINDS, kind_counts, scene, write_table
from clip_data.demo.kinds import MIN_ROWS
from clip_data.errors import ClipDataError


@pytest.fixture(scope="module")
def table_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("table") / "urls.parquet"
    write_table(path)
    return path


def test_shape_and_shares(table_path):
    file = pq.ParquetFile(table_path)
    assert file.schema_arrow.names == ["url", "caption", "label", "kind"]
    assert [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)] == [500] * 8
    kinds = Counter(file.read(columns=["kind"])["kind"].to_pylist())
    assert kinds == {name: kind.per_4000 for name, kind in KINDS.items()} == kind_counts(4000)
    unusual = 1 - kinds["ok"] / 4000
    assert 0.08 <= unusual <= 0.10
    assert sum(KINDS[kind].slow * number for kind, number in kinds.items()) / 4000 <= 0.005


def test_kinds_are_spread_over_the_row_groups(table_path):
    file = pq.ParquetFile(table_path)
    for group in range(file.num_row_groups):
        kinds = Counter(file.read_row_group(group, columns=["kind"])["kind"].to_pylist())
        assert 0.86 < kinds["ok"] / 500 < 0.95


def test_urls_follow_the_kind(table_path):
    rows = pq.read_table(table_path).to_pylist()
    by_kind = {kind: [row for row in rows if row["kind"] == kind] for kind in KINDS}
    assert all(row["url"] is None for row in by_kind["null_url"])
    assert all(row["url"] == "" for row in by_kind["empty_url"])
    assert all(row["url"].startswith("ftp://127.0.0.1/") for row in by_kind["scheme_ftp"])
    assert all(row["url"].startswith("data:") for row in by_kind["scheme_data"])
    for position, row in enumerate(rows):
        if row["kind"] == "ok":
            drawn = scene(0, position)
            suffix = drawn.format.replace("jpeg", "jpg")
            assert row["url"] == f"http://127.0.0.1:8765/ok/0/{position}.{suffix}"
            assert (row["caption"], row["label"]) == (drawn.caption, drawn.label)
    hosts = {row["url"].split("/")[2] for row in rows if (row["url"] or "").startswith("http") and "/ok/" in row["url"]}
    assert hosts == {"127.0.0.1:8765"}


def test_duplicates_have_one_original_each(table_path):
    rows = pq.read_table(table_path).to_pylist()
    originals = {row["url"]: row for row in rows if row["kind"] == "ok"}
    copied = []
    for row in rows:
        if row["kind"].startswith("duplicate_"):
            original = originals[row["url"].replace(f"/{row['kind']}/", "/ok/")]
            assert row["caption"] == original["caption"]
            assert (row["url"] == original["url"]) == (row["kind"] == "duplicate_row")
            copied.append(original["url"])
    assert len(copied) == len(set(copied)) == 36


def test_same_arguments_same_bytes_in_another_process(tmp_path):
    write_table(tmp_path / "a.parquet", rows=200, seed=7, base_url="http://127.0.0.1:9000/")
    program = (
        "from clip_data.demo import write_table\n"
        f"write_table({str(tmp_path / 'b.parquet')!r}, rows=200, seed=7, base_url='http://127.0.0.1:9000')"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
    write_table(tmp_path / "c.parquet", rows=200, seed=8, base_url="http://127.0.0.1:9000")
    a, b, c = (hashlib.sha256((tmp_path / f"{name}.parquet").read_bytes()).hexdigest() for name in "abc")
    assert a == b != c
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.parquet", "b.parquet", "c.parquet"]


def test_every_kind_occurs_in_a_small_table():
    counts = kind_counts(MIN_ROWS)
    assert sum(counts.values()) == MIN_ROWS
    assert min(counts.values()) == 1


def test_too_few_rows_is_an_error(tmp_path):
    with pytest.raises(ClipDataError, match=rf"rows = {MIN_ROWS - 1} .*at least {MIN_ROWS}"):
        write_table(tmp_path / "urls.parquet", rows=MIN_ROWS - 1)
    assert not list(tmp_path.iterdir())


def test_unwritable_table_is_an_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ClipError, match=r"file"):
        write_table(tmp_path / "file" / "urls.parquet", rows=200)
    with pytest.raises(ClipError, match="is a folder"):
        write_table(tmp_path, rows=200)
