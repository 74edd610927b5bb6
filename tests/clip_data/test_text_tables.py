"""Text tables: what arrives is what is written, and what cannot is refused by line."""

import csv
import gzip
import io
import json
import random
import subprocess
import sys
import textwrap
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clip_core.store import Store
from clip_data import text_tables
from clip_data.cli import main
from clip_data.errors import ClipDataError
from clip_data.plan import PlanConfig, plan
from clip_data.text_tables import convert

TEXTS = ("url", "caption")


def read(folder: Path, name: str, content: bytes | str, extras: tuple[str, ...] = ()) -> pa.Table:
    source = folder / name
    source.write_bytes(content.encode() if isinstance(content, str) else content)
    convert(str(source), Store(folder / "out"), "table.parquet", TEXTS, extras, 1000)
    return pq.read_table(folder / "out" / "table.parquet")


def captions(folder: Path, name: str, content: bytes | str) -> list[str]:
    return read(folder, name, content)["caption"].to_pylist()


def rows(*texts: str, mark: str = ",") -> str:
    return "\n".join([f"url{mark}caption", *(f"http://h/{i}{mark}{text}" for i, text in enumerate(texts))]) + "\n"


ODD = [
    'a 12" ruler',
    '"',
    '"unpaired',
    'closed"',
    '"quoted"',
    '""',
    "",
    "NA",
    "null",
    "007",
    "1e5",
    " spaces ",
    "next\x85line\u2028and\u2029more\x0b\x0c",
    "nul\x00in it",
    "émoji 🙂",
    "\ufeffmark",
]


def test_tsv_has_no_quoting(tmp_path):
    found = read(tmp_path, "in.tsv", rows(*ODD, "a, b", mark="\t"))
    assert found["caption"].to_pylist() == [*ODD, "a, b"]
    assert found["url"].to_pylist() == [f"http://h/{i}" for i in range(len(ODD) + 1)]


def test_csv_and_jsonl_keep_every_text_that_a_writer_writes(tmp_path):
    texts = [
        *ODD,
        "a, b",
        "two\nlines",
        "three\r\nlines\r\nhere",
        "roses, red\nviolets, blue\nsugar, sweet",
        '"\n"',
        ",",
    ]
    pairs = [(f"http://h/{i}", text) for i, text in enumerate(texts)]
    for ending in ("\n", "\r\n"):
        for order in (1, -1):
            buffer = io.StringIO()
            lines = [TEXTS, *pairs]
            csv.writer(buffer, lineterminator=ending).writerows(line[::order] for line in lines)
            assert captions(tmp_path, "in.csv", buffer.getvalue()) == texts, (ending, order)
    for ascii_only in (True, False):
        lines = [json.dumps({"url": url, "caption": text}, ensure_ascii=ascii_only) for url, text in pairs]
        assert captions(tmp_path, "in.jsonl", "\r\n\r\n".join(lines)) == texts


def test_csv_of_random_texts(tmp_path):
    chance = random.Random(7)
    texts = ["".join(chance.choices('ab ,"\n\r', k=chance.randrange(12))) for _ in range(3000)]
    buffer = io.StringIO()
    csv.writer(buffer, quoting=csv.QUOTE_ALL).writerows([TEXTS, *((f"http://h/{i}", t) for i, t in enumerate(texts))])
    assert captions(tmp_path, "in.csv", buffer.getvalue()) == texts


def test_a_quote_within_an_unquoted_csv_field_stands_for_itself(tmp_path):
    odd = ['a 12" ruler', 'both "sides" of it', 'closed"', ' "after a space"']
    assert captions(tmp_path, "in.csv", rows(*odd)) == odd


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (rows("one", '"open', "two", "three"), "lines 3 to 5: a quoted field is not closed"),
        (
            rows("one", '"open', "two", 'closed"', "three"),
            "line 3: a quoted field goes on to line 5 and takes in other",
        ),
        (rows('"open', 'a 14"'), "line 2: a quoted field goes on to line 3"),
        (rows('"open, and a comma', 'a 14"'), "line 2: a quoted field goes on to line 3"),
        (rows('"open', '"12"" wide"'), "lines 2 to 3: text follows a closing quote"),
        (rows('"open', '""', 'closed"'), "line 2: a quoted field goes on to line 4"),
        (rows('"open', '"proper"'), "lines 2 to 3: text follows a closing quote"),
        (rows("one", '"he" said'), "line 3: text follows a closing quote"),
        ('caption,url\n"a 12,http://h/0\nb 14",http://h/1\n', "line 2: a quoted field goes on to line 3"),
        ('url,caption,n\nhttp://h/0,"a 12,1\nhttp://h/1,b 14",2\n', "line 2: a quoted field goes on to line 3"),
        ('url,caption,n\nhttp://h/0,"a 12\nhttp://h/1,b 14",2\n', "line 2: a quoted field goes on to line 3"),
        ('url,t,caption\nhttp://h/0,"x, y","open\nhttp://h/1,t,c"\n', "line 2: a quoted field goes on to line 3"),
        ('url,caption\na.jpg,"open\nb.jpg,closed"\n', "line 2: a quoted field goes on to line 3"),
        ('url,caption\r\nhttp://h/0,"open\r\nhttp://h/1,closed"\r\n', "line 2: a quoted field goes on to line 3"),
        ('url,caption,"n\nhttp://h/0,c,1"\n', "line 1: the header goes on to line 2"),
        ('"url,caption\nhttp://h/0,one\n', "lines 1 to 2: a quoted field is not closed"),
        (rows("one", '"two\nlines"', "three, four"), "line 5 has 3 fields and the header 2"),
        (rows("one") + "http://h/1\n", "line 3 has 1 fields and the header 2"),
        (rows("a\rb"), "line 2: a lone carriage return"),
        ("url,caption\rhttp://h/0,one\r", "lone carriage return"),
        (rows('"' + "x" * 200_000), "a field is longer than"),
    ],
)
def test_csv_that_does_not_follow_rfc_4180(tmp_path, monkeypatch, content, message):
    monkeypatch.setattr(text_tables, "LONGEST", 1 << 17)
    with pytest.raises(ClipDataError, match=message):
        read(tmp_path, "in.csv", content)
    assert not list((tmp_path / "out").rglob("*"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "in.tsv",
            rows("one", "two\tthree", mark="\t"),
            "line 3 has 3 fields and the header 2: a field cannot hold a tab",
        ),
        ("in.tsv", "url\tcaption\nhttp://h/0\n", "line 2 has 1 fields"),
        ("in.tsv", "url\tcaption\n\n\n", "in.tsv is an empty table"),
        ("in.tsv", b"url\tcaption\nhttp://h/0\tone\nhttp://\xe9\ttwo\n", r"line 3: column 'url' holds invalid UTF-8"),
        ("in.jsonl", b'{"url": "u", "caption": "\xe9"}', r"line 1: column 'caption' holds invalid UTF-8"),
        ("in.jsonl", '{"url": "u", "caption": "\\ud800"}', r"line 1: column 'caption' holds invalid UTF-8"),
        ("in.jsonl", '{"url": "u", "caption": "a", "caption": "b"}', "line 1 .* key 'caption' occurs twice"),
        ("in.jsonl", '{"url": "u", "caption": ["a"]}', r"line 1: column 'caption' holds \['a'\], not a string"),
        ("in.jsonl", '{"url": "u", "caption": "c"}\n' + "[" * 100_000, "line 2 is not JSON"),
        ("in.jsonl", '{"url": "u", "caption": "c", "n": ' + "9" * 5000 + "}", "line 1 is not JSON"),
        ("in.csv", "url,caption\n".encode("utf-16"), "is in UTF-16"),
        ("in.csv", "url,caption\r" * 100_000, "has no line feed in its first"),
        ("in.csv.gz", gzip.compress(rows("one").encode() * 99, mtime=0)[:-20], "in.csv.gz is damaged"),
        ("in.csv.gz", gzip.compress(rows("one").encode(), mtime=0) + b"more", "in.csv.gz is damaged"),
        ("in.csv", "url\tcaption\nu\tc\n", r"no column 'url' and 'caption'; it has url\\tcaption"),
        ("in.csv", "url,caption,url\nu,c,v\n", "has 2 columns 'url': rename or remove"),
        ("in.tsv", "url\tcaption\tcaption\nu\tc\td\n", "has 2 columns 'caption': rename or remove"),
    ],
)
def test_faults_are_named_by_line_and_leave_nothing(tmp_path, name, content, message):
    with pytest.raises(ClipDataError, match=message) as caught:
        read(tmp_path, name, content)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000
    assert not list((tmp_path / "out").rglob("*"))


def test_byte_order_marks_members_of_gzip_and_blank_lines(tmp_path):
    bom = b"\xef\xbb\xbf"
    assert captions(tmp_path, "in.csv", bom + b'"url",caption\r\n\r\nhttp://h/0,one\r\n\r\n') == ["one"]
    assert captions(tmp_path, "in.tsv", bom + b"url\tcaption\n\nhttp://h/0\tone") == ["one"]
    assert captions(tmp_path, "in.jsonl", bom + b'\n{"url": "u", "caption": "one"}\n \n') == ["one"]
    halves = rows("one", "two").encode()
    members = gzip.compress(halves[:20]) + gzip.compress(halves[20:])
    assert captions(tmp_path, "in.csv.gz", members) == ["one", "two"]


@pytest.mark.parametrize(
    ("fields", "kind", "values"),
    [
        ("1 2 _ -3", pa.int64(), [1, 2, None, -3]),
        ("1 0.5 _ -2", pa.float64(), [1.0, 0.5, None, -2.0]),
        ("1 18446744073709551615", pa.uint64(), [1, 2**64 - 1]),
        ("-1 9223372036854775807", pa.int64(), [-1, 2**63 - 1]),
        ("true False _", pa.bool_(), [True, False, None]),
        ("0.10000000000000001 1e300 nan", pa.float64(), [0.1, 1e300, float("nan")]),
        ("007 8", pa.string(), ["007", "8"]),
        ("1 NA _", pa.string(), ["1", "NA", ""]),
        ("1 -18446744073709551615", pa.string(), ["1", "-18446744073709551615"]),
        ("0.5 9007199254740993", pa.string(), ["0.5", "9007199254740993"]),
        ("0.1234567890123456789 1", pa.string(), ["0.1234567890123456789", "1"]),
        ("1e400 1", pa.string(), ["1e400", "1"]),
        ("1e-400 1", pa.string(), ["1e-400", "1"]),
        ("1 true", pa.string(), ["1", "true"]),
        ("2020-01-01 2020-01-02", pa.string(), ["2020-01-01", "2020-01-02"]),
        ("_ _", pa.string(), ["", ""]),
        ("+5 1_000", pa.string(), ["+5", "1_000"]),
    ],
)
@pytest.mark.parametrize("kind_of_file", ["csv", "tsv"])
def test_types_of_extra_columns_keep_every_field_of_the_whole_file(
    tmp_path, monkeypatch, kind_of_file, fields, kind, values
):
    monkeypatch.setattr(text_tables, "BATCH", 1)
    mark = "," if kind_of_file == "csv" else "\t"
    given = [field.replace("_", "") if field == "_" else field for field in fields.split()]
    lines = [mark.join(("url", "caption", "n")), *(mark.join((f"http://h/{i}", "c", n)) for i, n in enumerate(given))]
    found = read(tmp_path, f"in.{kind_of_file}", "\n".join(lines), ("n",))["n"]
    assert found.type == kind
    assert str(found.to_pylist()) == str(values)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ("1 2 0.5", pa.float64()),
        ("0.5 null 1", pa.float64()),
        ("1 9007199254740993", pa.int64()),
        ("1 18446744073709551615", pa.uint64()),
        ("NaN Infinity 1", pa.float64()),
        ("true null false", pa.bool_()),
        ('"007" "x"', pa.string()),
        ("null null", pa.string()),
        ("[1] [0.5] [] null", pa.list_(pa.float64())),
        ('{"a":1} {"a":0.5,"b":["x"]}', pa.struct([("a", pa.float64()), ("b", pa.list_(pa.string()))])),
    ],
)
def test_types_of_json_columns_keep_every_value_of_the_whole_file(tmp_path, monkeypatch, values, kind):
    monkeypatch.setattr(text_tables, "BATCH", 1)
    lines = [f'{{"url": "u", "caption": "c", "n": {value}}}' for value in values.split()]
    found = read(tmp_path, "in.jsonl", "\n".join([*lines, '{"url": "u", "caption": "c"}']), ("n",))["n"]
    expected = pa.array([*map(json.loads, values.split()), None], kind)
    assert found.type == kind
    assert str(found.to_pylist()) == str(expected.to_pylist())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("1 true", r"column 'n': no single type .*: integer \(first in line 1\), boolean \(first in line 2\)"),
        ('1 2 "x"', r"integer \(first in line 1\), text \(first in line 3\)"),
        ("1 1e400", r"number with more digits than 64 bits keep \(first in line 2\)"),
        ("0.1234567890123456789", r"number with more digits than 64 bits keep \(first in line 1\)"),
        ("1 18446744073709551616", r"integer of more than 64 bits \(first in line 2\)"),
        ("-1 18446744073709551615", r"integer beyond 2\^63 \(first in line 2\)"),
        ("0.5 9007199254740993", r"integer beyond 2\^53 \(first in line 2\)"),
        ('[1] ["x"]', r"integer \(first in line 1\), text \(first in line 2\)"),
        ('[1] {"a":1}', r"list \(first in line 1\), object \(first in line 2\)"),
        ("{} {}", r"object \(first in line 1\)"),
        ('["\\ud800"]', r"line 1: column 'n' holds invalid UTF-8"),
    ],
)
def test_json_values_that_no_type_keeps_are_refused_by_line(tmp_path, monkeypatch, values, message):
    monkeypatch.setattr(text_tables, "BATCH", 1)
    lines = [f'{{"url": "u", "caption": "c", "n": {value}}}' for value in values.split()]
    with pytest.raises(ClipDataError, match=message):
        read(tmp_path, "in.jsonl", "\n".join(lines), ("n",))
    # Without the column, nothing of it is read.
    assert read(tmp_path, "in.jsonl", "\n".join(lines)).num_rows == len(lines)


def test_json_rows_without_a_text_are_null_and_a_late_column_is_found(tmp_path):
    content = '{"url": "u"}\n{"caption": "c", "url": null}\n{"url": "v", "caption": null}\n'
    assert read(tmp_path, "in.jsonl", content).to_pylist() == [
        {"url": "u", "caption": None},
        {"url": None, "caption": "c"},
        {"url": "v", "caption": None},
    ]


@pytest.mark.parametrize("name", ["in.csv", "in.tsv", "in.jsonl", "in.parquet"])
def test_missing_columns_are_found_without_regard_to_case(tmp_path, capsys, name):
    if name == "in.parquet":
        pq.write_table(pa.table({"URL": ["u"], "TEXT": ["c"], "WIDTH": [1]}), tmp_path / name)
    elif name == "in.jsonl":
        (tmp_path / name).write_text('{"URL": "u", "TEXT": "c", "WIDTH": 1}')
    else:
        (tmp_path / name).write_text("URL,TEXT,WIDTH\nu,c,1\n".replace(",", "," if name == "in.csv" else "\t"))
    with pytest.raises(SystemExit, match="2"):
        main(["plan", "--urls", str(tmp_path / name), "--dataset", str(tmp_path / "out"), "--extra-columns", "Width"])
    said = capsys.readouterr().err
    assert "has no column 'url' and 'caption' and 'Width'; it has URL, TEXT, WIDTH; did you mean" in said
    flags = "--url-column URL --caption-column TEXT --extra-columns WIDTH"
    assert said.endswith(f"did you mean {flags}?\n")
    with pytest.raises(SystemExit, match="0"):
        main(["plan", "--urls", str(tmp_path / name), "--dataset", str(tmp_path / "out"), *flags.split()])


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("in.csv", "url, caption\n", "did you mean --caption-column ' caption'?"),
        ("in.csv", "url;caption\nu;c\n", "it has url;caption; a .csv has commas between its fields"),
        ("in.csv", "url\tcaption\nu\tc\n", "a .tsv tabs"),
        ("in.tsv", "url,caption\nu,c\n", "a .tsv tabs"),
        ("in.tsv", "url caption\ru c\r", "and their lines end with a line feed"),
    ],
)
def test_other_separators_are_hinted_at(tmp_path, name, content, said):
    (tmp_path / name).write_text(content)
    with pytest.raises(ClipDataError) as caught:
        plan(str(tmp_path / "out"), PlanConfig(urls=(str(tmp_path / name),)))
    assert said in str(caught.value)


MEASURE = """
    import resource, sys
    from clip_core.store import Store
    from clip_data.text_tables import convert
    def peak(name):
        convert(f"{sys.argv[1]}/{name}", Store(sys.argv[1]), "x.parquet", ("url", "caption"), ("n",), 1000)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    small = peak("small.csv")
    print(peak("large.csv") - small)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_file(tmp_path):
    for name, size in (("small.csv", 2_000), ("large.csv", 60_000)):
        lines = (f"http://h/{i},{i:0800d},{i}\n" for i in range(size))
        (tmp_path / name).write_text("url,caption,n\n" + "".join(lines))
    measure = [sys.executable, "-c", textwrap.dedent(MEASURE), str(tmp_path)]
    run = subprocess.run(measure, capture_output=True, text=True, check=True)
    assert int(run.stdout) < 20_000  # KiB; the file is 50 MB
