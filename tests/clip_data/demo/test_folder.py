import http.client
import json

import pyarrow.parquet as pq
import pytest
from PIL import Image

from clip_data.demo import LoopbackServer, write_folder_table
from clip_data.errors import ClipDataError


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "pictures"
    (root / "my images").mkdir(parents=True)
    Image.new("RGB", (20, 10), "red").save(root / "my images" / "größe #1.png")
    Image.new("RGB", (20, 10), "blue").save(root / "b.jpg")
    return root


def write_lines(folder, *records):
    path = folder / "captions.jsonl"
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records), "utf-8")
    return path


GOOD = {"file": "b.jpg", "caption": "Blue.", "category": "colours", "year": 2004}


def test_table_of_a_folder_leads_to_its_files(folder, tmp_path):
    lines = write_lines(
        folder, GOOD, "", {"file": "my images/größe #1.png", "caption": "Röd.", "category": None, "year": [1]}
    )
    with LoopbackServer(port=0, folder=folder) as server:
        out = tmp_path / "urls.parquet"
        assert write_folder_table(out, folder, lines, server.base_url, columns=("category", "year")) == 2
        rows = pq.read_table(out).to_pylist()
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
        for row, name in zip(rows, ("b.jpg", "my images/größe #1.png"), strict=True):
            connection.request("GET", row["url"].removeprefix(server.base_url))
            answer = connection.getresponse()
            assert answer.status == 200
            assert answer.headers["Content-Type"].startswith("image/")
            assert answer.read() == (folder / name).read_bytes()
        connection.close()
    assert [(row["caption"], row["category"], row["year"]) for row in rows] == [
        ("Blue.", "colours", "2004"),
        ("Röd.", "", "[1]"),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"file": "gone.jpg", "caption": "x", "category": "y"}, r"line 2: there is no file 'gone.jpg'"),
        ({"caption": "x", "category": "y"}, r"line 2: no key 'file'; it has caption, category"),
        ({"file": "b.jpg", "category": "y"}, r"line 2: no key 'caption'"),
        ({"file": "b.jpg", "caption": "x"}, r"line 2: no key 'category'"),
        ({"file": "b.jpg", "caption": "", "category": "y"}, r"line 2: 'caption' must be a text"),
        ({"file": "../secret", "caption": "x", "category": "y"}, r"line 2: '../secret' lies outside"),
        ("[1, 2]", r"line 2: expected a JSON object"),
        ('{"file": "b.jpg", ', r"line 2: not JSON"),
    ],
)
def test_a_bad_line_is_named(folder, tmp_path, line, message):
    (folder.parent / "secret").write_text("x")
    out = tmp_path / "urls.parquet"
    with pytest.raises(ClipDataError, match=message):
        write_folder_table(out, folder, write_lines(folder, GOOD, line), "http://127.0.0.1:1")
    assert not out.exists()


def test_no_rows_no_captions_no_folder(folder, tmp_path):
    out = tmp_path / "urls.parquet"
    with pytest.raises(ClipDataError, match="holds no rows"):
        write_folder_table(out, folder, write_lines(folder), "http://127.0.0.1:1")
    with pytest.raises(ClipDataError, match="cannot read the captions"):
        write_folder_table(out, folder, folder / "none.jsonl", "http://127.0.0.1:1")
    with pytest.raises(ClipDataError, match="is not a folder"):
        write_folder_table(out, folder / "none", write_lines(folder, GOOD), "http://127.0.0.1:1")
    with pytest.raises(ClipDataError, match="differ"):
        write_folder_table(out, folder, write_lines(folder, GOOD), "http://127.0.0.1:1", columns=("url",))
    assert not out.exists()
