"""Planning: units follow the tables' row groups, text tables are converted once, changed sources are noticed."""

import gzip
import io
import json
import subprocess
import sys
import textwrap
import threading
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clip_core import ClipError
from clip_core.store import Store
from clip_data import sources, text_tables
from clip_data.dataset import MAX_ROWS_PER_UNIT, Dataset
from clip_data.errors import ClipDataError
from clip_data.plan import PlanConfig, plan, read_unit_rows


def table(rows: int, start: int = 0, **extra) -> pa.Table:
    numbers = range(start, start + rows)
    return pa.table(
        {"url": [f"http://h/{i}.jpg" for i in numbers], "caption": [f"picture {i}" for i in numbers], **extra}
    )


def write(path: Path, rows: int, group: int = 1_000_000, start: int = 0, **extra) -> str:
    pq.write_table(table(rows, start, **extra), path, row_group_size=group)
    return str(path)


def captions(dataset: Dataset) -> list[str]:
    return [text for unit in dataset.units for text in read_unit_rows(dataset, unit)["caption"].to_pylist()]


def test_units_are_row_ranges_within_row_groups_in_input_order(tmp_path):
    first, second = write(tmp_path / "a.parquet", 25, group=10), write(tmp_path / "b.parquet", 3, start=25)
    dataset = plan(str(tmp_path / "out"), PlanConfig(urls=(str(tmp_path / "*.parquet"),), rows_per_unit=4))
    assert [(u.ordinal, u.source, u.row_group, u.row_start, u.rows) for u in dataset.units] == [
        (0, first, 0, 0, 4),
        (1, first, 0, 4, 4),
        (2, first, 0, 8, 2),
        (3, first, 1, 0, 4),
        (4, first, 1, 4, 4),
        (5, first, 1, 8, 2),
        (6, first, 2, 0, 4),
        (7, first, 2, 4, 1),
        (8, second, 0, 0, 3),
    ]
    assert captions(dataset) == [f"picture {i}" for i in range(28)]
    assert [source["rows"] for source in dataset.description["sources"]] == [25, 3]


def test_rows_have_mapped_names_extra_columns_keep_their_types_and_nulls_stay(tmp_path):
    data = pa.table(
        {
            "TEXT": pa.array(["a", None, "c"]).dictionary_encode(),
            "unused": [1, 2, 3],
            "label": pa.array([7, None, 9], pa.int16()),
            "link": pa.array(["http://h/0", "http://h/1", None], pa.large_string()),
        }
    )
    pq.write_table(data, tmp_path / "in.parquet")
    config = PlanConfig(
        urls=(str(tmp_path / "in.parquet"),), url_column="link", caption_column="TEXT", extra_columns=("label",)
    )
    dataset = plan(str(tmp_path / "out"), config)
    rows = read_unit_rows(Dataset.open(dataset.url), dataset.units[0])
    assert rows.schema == pa.schema([("url", pa.string()), ("caption", pa.string()), ("label", pa.int16())])
    assert rows.to_pylist()[1:] == [
        {"url": "http://h/1", "caption": None, "label": None},
        {"url": None, "caption": "c", "label": 9},
    ]


def test_a_unit_deep_in_a_row_group_of_many_batches(tmp_path):
    source = write(tmp_path / "in.parquet", 30_000)
    dataset = plan(str(tmp_path / "out"), PlanConfig(urls=(source,), rows_per_unit=7_000))
    rows = read_unit_rows(dataset, dataset.units[2])["caption"].to_pylist()
    assert rows == [f"picture {i}" for i in range(14_000, 21_000)]


def lines(kind: str) -> bytes:
    odd = 'a "{}", and more' if kind == "tsv" else 'a "{}", and\nmore'
    rows = [(f"http://h/{i}", odd.format(i) if i % 2 else "ünïcode", i * 2) for i in range(10)]
    if kind == "jsonl":
        return "\n".join(json.dumps({"n": n, "url": url, "caption": text}) for url, text, n in rows).encode()
    if kind == "tsv":  # without quoting, and so without line breaks
        return "\n".join(["url\tcaption\tn", *(f"{url}\t{text}\t{n}" for url, text, n in rows)]).encode()
    quoted = [",".join((url, '"' + text.replace('"', '""') + '"', str(n))) for url, text, n in rows]
    return "\n".join(["url,caption,n", *quoted]).encode()


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "csv.gz", "jsonl.gz"])
def test_text_tables_are_converted_once_and_deterministically(tmp_path, kind):
    source = tmp_path / f"in.{kind}"
    data = lines(kind.split(".")[0])
    source.write_bytes(gzip.compress(data) if kind.endswith("gz") else data)
    config = PlanConfig(urls=(str(source),), extra_columns=("n",), rows_per_unit=4)
    dataset = plan(str(tmp_path / "out"), config)
    assert [unit.rows for unit in dataset.units] == [4, 4, 2]
    assert {unit.source for unit in dataset.units} == {"sources/00000.parquet"}
    rows = [row for unit in dataset.units for row in read_unit_rows(dataset, unit).to_pylist()]
    caption = 'a "3", and more' if kind == "tsv" else 'a "3", and\nmore'
    assert rows[3] == {"url": "http://h/3", "caption": caption, "n": 6}
    assert rows[4]["caption"] == "ünïcode"
    converted = tmp_path / "out" / "sources" / "00000.parquet"
    before = (converted.read_bytes(), converted.stat().st_mtime_ns)
    plan(str(tmp_path / "out"), config)
    assert (converted.read_bytes(), converted.stat().st_mtime_ns) == before
    plan(str(tmp_path / "again"), config)
    assert (tmp_path / "again" / "sources" / "00000.parquet").read_bytes() == before[0]


def test_conversion_does_not_depend_on_the_blocks_of_the_reader(tmp_path, monkeypatch):
    (tmp_path / "in.jsonl").write_bytes(lines("jsonl"))
    config = PlanConfig(urls=(str(tmp_path / "in.jsonl"),), rows_per_unit=4)
    plan(str(tmp_path / "one"), config)
    monkeypatch.setattr(text_tables, "BATCH", 3)
    plan(str(tmp_path / "two"), config)
    one, two = (tmp_path / name / "sources" / "00000.parquet" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


def test_a_converted_source_moves_with_its_folder(tmp_path):
    (tmp_path / "in.csv").write_bytes(lines("csv"))
    plan(str(tmp_path / "out"), PlanConfig(urls=(str(tmp_path / "in.csv"),)))
    (tmp_path / "in.csv").unlink()
    (tmp_path / "out").rename(tmp_path / "moved")
    assert len(captions(Dataset.open(str(tmp_path / "moved")))) == 10


def test_the_same_arguments_open_the_plan_and_others_are_refused(tmp_path):
    source, root = write(tmp_path / "a.parquet", 10), str(tmp_path / "out")
    config = PlanConfig(urls=(str(tmp_path / "*.parquet"),))
    first = plan(root, config)
    assert plan(root, config).description == first.description
    with pytest.raises(ClipError, match=r"config\.rows_per_unit is 10000 there and 5 now"):
        plan(root, PlanConfig(urls=config.urls, rows_per_unit=5))
    write(tmp_path / "b.parquet", 10)
    with pytest.raises(ClipError, match=r"b.parquet is new since it was planned"):
        plan(root, config)
    (tmp_path / "b.parquet").unlink()
    write(Path(source), 11)
    with pytest.raises(ClipError, match=r"a.parquet has changed since it was planned"):
        plan(root, config)
    assert len(Dataset.open(root).units) == 1


def test_a_foreign_folder_is_refused_before_anything_is_written(tmp_path):
    (tmp_path / "in.csv").write_bytes(lines("csv"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("\\begin{document}")
    with pytest.raises(ClipError, match="is not empty and holds no dataset"):
        plan(str(tmp_path / "out"), PlanConfig(urls=(str(tmp_path / "in.csv"),)))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.tex"]


def test_a_source_that_changed_under_a_plan_is_noticed(tmp_path):
    source = write(tmp_path / "in.parquet", 10)
    dataset = plan(str(tmp_path / "out"), PlanConfig(urls=(source,)))
    write(Path(source), 10, start=1)  # as many rows, other values
    with pytest.raises(ClipDataError, match=r"in.parquet has changed since it was planned"):
        read_unit_rows(dataset, dataset.units[0])
    Path(source).unlink()
    with pytest.raises(ClipDataError, match=r"cannot read the source .*in.parquet"):
        read_unit_rows(dataset, dataset.units[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"urls": ()}, "urls is empty"),
        ({"url_column": "a", "caption_column": "a"}, "url_column and caption_column are both 'a'"),
        ({"rows_per_unit": 0}, "rows_per_unit = 0"),
        ({"rows_per_unit": MAX_ROWS_PER_UNIT + 1}, "rows_per_unit = 100001 must be between 1 and 100000"),
        ({"extra_columns": ("width",)}, "extra column 'width' has the name of a sidecar column"),
        ({"extra_columns": ("n", "n")}, "twice: n, n"),
    ],
)
def test_configs_that_cannot_be_planned_are_refused(options, message):
    with pytest.raises(ClipDataError, match=message):
        PlanConfig(**{"urls": ("a.parquet",), **options})


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("in.parquet", table(3), {"caption_column": "captions"}, "has no column 'captions'; it has url, caption; did"),
        ("in.parquet", table(3), {"extra_columns": ("label",)}, "has no column 'label'"),
        ("in.parquet", table(0), {}, "in.parquet: an empty table"),
        ("in.parquet", table(2, n=[1, 2]), {"url_column": "n"}, "column 'n' holds int64, not strings"),
        ("in.parquet", table(2, n=[b"1", b"2"]), {"caption_column": "n"}, "column 'n' holds binary, not strings: conv"),
        ("in.parquet", b"", {}, "in.parquet is damaged"),
        ("in.parquet", b"PAR1 but no footer", {}, "in.parquet is damaged"),
        ("in.csv", b"", {}, "an empty table"),
        ("in.csv", b"url,caption\n", {}, "in.csv is an empty table"),
        ("in.csv", b"url,text\nhttp://h/1,one\n", {}, "has no column 'caption'; it has url, text"),
        ("in.csv", b"url,caption\nhttp://h/1,one,two\n", {}, "in.csv, line 2 has 3 fields and the header 2"),
        (
            "in.csv",
            b"url,caption\nhttp://h/1,\xff\n",
            {},
            r"in.csv, line 2: column 'caption' holds invalid UTF-8, '.udcff'",
        ),
        ("in.csv.gz", b"url,caption\n", {}, r"in.csv.gz is damaged: Not a gzipped file"),
        ("in.csv.gz", gzip.compress(b"url,caption\n" * 99, mtime=0)[:-9], {}, r"in.csv.gz is damaged"),
        ("in.jsonl", b"\n\n", {}, "in.jsonl is an empty table"),
        ("in.jsonl", b'{"url": "http://h/1"}', {}, "has no column 'caption'; it has url"),
        ("in.jsonl", b'{"url": "u", "caption": "c"}\n{"url": ', {}, "in.jsonl, line 2 is not JSON"),
        ("in.jsonl", b'["url", "caption"]', {}, "in.jsonl, line 1 is not a JSON object"),
        ("in.jsonl", b'{"url": "u", "caption": 3}', {}, "in.jsonl, line 1: column 'caption' holds 3, not a string"),
        (
            "in.jsonl",
            b'{"url": "u", "caption": "c"}\n{"url": 3, "caption": "c"}',
            {},
            "in.jsonl, line 2: .*'url' holds 3, not",
        ),
        ("in.xlsx", b"PK", {}, "in.xlsx is not a table of a known format"),
    ],
)
def test_tables_that_do_not_fit_leave_no_dataset(tmp_path, name, content, options, message):
    if isinstance(content, pa.Table):
        pq.write_table(content, tmp_path / name)
    else:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ClipDataError, match=message):
        plan(str(tmp_path / "out"), PlanConfig(urls=(str(tmp_path / name),), **options))
    left = [path.name for path in (tmp_path / "out").rglob("*")] if (tmp_path / "out").exists() else []
    assert left == []


def test_sources_that_are_not_there(tmp_path):
    for url, message in [
        (f"{tmp_path}/none.parquet", "none.parquet does not exist"),
        (f"{tmp_path}/*.parquet", "matches no file"),
        (str(tmp_path), r"is a folder: name its files"),
        ("nosuchfs://x/y.parquet", "cannot open the source 'nosuchfs://x/y.parquet'"),
    ]:
        with pytest.raises(ClipDataError, match=message):
            plan(str(tmp_path / "out"), PlanConfig(urls=(url,)))


def test_one_file_named_twice_or_columns_of_two_types_are_refused(tmp_path):
    source = write(tmp_path / "a.parquet", 2, n=[1, 2])
    with pytest.raises(ClipDataError, match=r"urls names .*a.parquet twice"):
        plan(str(tmp_path / "out"), PlanConfig(urls=(source, f"{tmp_path}/a.*")))
    write(tmp_path / "b.parquet", 2, n=["1", "2"])
    with pytest.raises(ClipDataError, match=r"holds int64 in .*a.parquet but string in .*b.parquet: use one type"):
        plan(str(tmp_path / "out"), PlanConfig(urls=(f"{tmp_path}/*.parquet",), extra_columns=("n",)))


def test_a_source_on_another_file_system(tmp_path):
    import fsspec

    memory = fsspec.filesystem("memory")
    with memory.open("/lists/in.parquet", "wb") as file:
        pq.write_table(table(5), file)
    dataset = plan("memory://planned", PlanConfig(urls=("memory://lists/*.parquet",), rows_per_unit=3))
    assert captions(Dataset.open("memory://planned")) == [f"picture {i}" for i in range(5)]
    assert dataset.units[0].source == "memory:///lists/in.parquet"
    memory.rm("/", recursive=True)


def invalid(*values: bytes, kind: pa.DataType | None = None) -> pa.Array:
    """A column of strings that are not checked."""
    return pa.Array.from_buffers(kind or pa.string(), len(values), pa.array(values, pa.binary()).buffers())


@pytest.mark.parametrize("form", ["string", "dictionary", "large", "list", "unused"])
def test_invalid_utf8_is_named_by_file_column_and_row(tmp_path, form):
    values = [b"caption %d" % i for i in range(25)]
    values[17] = b"caf\xe9"
    bad = invalid(*values)
    if form == "dictionary":
        bad = bad.dictionary_encode()
    if form == "large":
        bad = bad.cast(pa.large_string())
    if form == "list":
        bad = pa.ListArray.from_arrays(pa.array(range(26), pa.int32()), bad)
    good = pa.array([f"c{i}" for i in range(25)])
    caption, extra = (good, bad) if form in ("list", "unused") else (bad, good)
    data = pa.table({"url": [f"http://h/{i}" for i in range(25)], "caption": caption, "tags": extra})
    pq.write_table(data, tmp_path / "in.parquet", row_group_size=10)
    extras = () if form == "unused" else ("tags",)
    config = PlanConfig(urls=(str(tmp_path / "in.parquet"),), extra_columns=extras, rows_per_unit=4)
    dataset = plan(str(tmp_path / "out"), config)
    failed = []
    for unit in dataset.units:
        try:
            read_unit_rows(dataset, unit)
        except ClipDataError as error:
            failed.append(str(error))
    name = "tags" if form == "list" else "caption"
    expected = f"{tmp_path}/in.parquet: column '{name}' holds invalid UTF-8 in row 17 (the first is 0): repair"
    assert [error.partition(" the value")[0] for error in failed] == [expected] * (form != "unused")


def test_columns_that_occur_twice_are_refused(tmp_path):
    for name, columns in (("url", ("url", "caption", "url")), ("n", ("url", "caption", "n", "n"))):
        data = pa.Table.from_arrays([pa.array(["a"])] * len(columns), names=columns)
        pq.write_table(data, tmp_path / "in.parquet")
        config = PlanConfig(urls=(str(tmp_path / "in.parquet"),), extra_columns=("n",) if "n" in columns else ())
        with pytest.raises(ClipDataError, match=f"in.parquet has 2 columns '{name}': rename or remove all but one"):
            plan(str(tmp_path / "out"), config)
    dataset = plan(str(tmp_path / "out"), PlanConfig(urls=config.urls))  # a pair that is not asked for does no harm
    assert read_unit_rows(dataset, dataset.units[0]).to_pylist() == [{"url": "a", "caption": "a"}]


@pytest.mark.parametrize(
    "kind",
    [pa.large_string(), pa.string_view(), pa.null(), pa.dictionary(pa.int8(), pa.large_string())],
    ids=str,
)
def test_every_kind_of_string_column_nulls_and_empty_row_groups(tmp_path, kind):
    given = [None, None] if kind == pa.null() else ["a", None]
    schema = pa.schema([("url", pa.string()), ("caption", kind), ("meta", pa.struct([("url", pa.string())]))])
    rows = pa.table([pa.array(["u", None]), pa.array(given).cast(kind), pa.array([{"url": "x"}, None])], schema=schema)
    with pq.ParquetWriter(tmp_path / "in.parquet", schema) as writer:
        for group in (rows.slice(0, 0), rows, rows.slice(0, 0), rows):
            writer.write_table(group)
    config = PlanConfig(urls=(str(tmp_path / "in.parquet"),), extra_columns=("meta",))
    dataset = plan(str(tmp_path / "out"), config)
    assert [unit.rows for unit in dataset.units] == [2, 2]
    table = read_unit_rows(dataset, dataset.units[1])
    assert table.schema.types[:2] == [pa.string(), pa.string()]
    assert table["url"].to_pylist() == ["u", None]
    assert table["caption"].to_pylist() == given
    assert table["meta"].to_pylist() == [{"url": "x"}, None]


def test_no_thread_of_arrow_holds_a_python_file(tmp_path, monkeypatch):
    # It may drop the file after everything else, when the interpreter ends: that aborts the process.
    write(tmp_path / "in.parquet", 30_000, group=10_000)
    dataset = plan(str(tmp_path / "out"), PlanConfig(urls=(str(tmp_path / "in.parquet"),), rows_per_unit=4_000))
    readers = set()

    class Watched(io.FileIO):
        def read(self, size=-1, /):
            readers.add(threading.get_ident())
            return super().read(size)

    @contextmanager
    def opened(url):
        with Watched(url) as file:
            yield file

    monkeypatch.setattr(Store, "open", lambda self, name: Watched(self.full(name)))
    monkeypatch.setattr(sources, "opened", opened)
    units = Dataset.open(dataset.url).units
    assert read_unit_rows(dataset, units[1]).num_rows == 4_000
    assert readers == {threading.get_ident()}


MEASURE = """
    import resource, sys
    from clip_data.dataset import Dataset
    from clip_data.plan import read_unit_rows
    dataset = Dataset.open(sys.argv[1])
    read_unit_rows(dataset, dataset.units[0])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    read_unit_rows(dataset, dataset.units[-1])
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_does_not_grow_with_the_row_group(tmp_path):
    texts = pa.array([f"{i:060d}" for i in range(800_000)])
    pq.write_table(pa.table({"url": texts, "caption": texts}), tmp_path / "in.parquet", row_group_size=len(texts))
    dataset = plan(str(tmp_path / "out"), PlanConfig(urls=(str(tmp_path / "in.parquet"),), rows_per_unit=1000))
    measure = [sys.executable, "-c", textwrap.dedent(MEASURE), dataset.url]
    run = subprocess.run(measure, capture_output=True, text=True, check=True)
    assert int(run.stdout) < 30_000  # KiB; the row group's two columns are 100 MB
