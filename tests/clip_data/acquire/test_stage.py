"""The stage as a whole: rows in, a shard, a sidecar and a commit record out."""

import datetime
import errno
import hashlib
import io
import json
import math
import random
import resource
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clip_core import ClipError
from clip_core.config import fingerprint
from clip_data.acquire import AcquireConfig, AcquireStage, Code
from clip_data.acquire.shard import TarWriter, verify
from clip_data.dataset import sidecar_schema
from clip_data.errors import ClipDataError
from clip_data.plan import PlanConfig, plan
from clip_data.score import ScoreStage
from clip_data.select import SelectConfig, select
from clip_data.stage import run_unit
from clip_data.uid import uid
from tests.support.hostile_server import HostileServer
from tests.support.images import decode, encode, noise

CONFIG = AcquireConfig(
    image_size=64, allow_private=True, min_image_size=8, first_byte_timeout=0.3, total_timeout=0.5, retry_backoff=0
)


@pytest.fixture
def server():
    with HostileServer().running() as server:
        yield server


def make(folder, rows, name="out", **options):
    """A planned dataset for rows of (url, caption, further columns…)."""
    folder.mkdir(exist_ok=True)
    pq.write_table(rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(rows), folder / "list.parquet")
    return plan(str(folder / name), PlanConfig(urls=(str(folder / "list.parquet"),), **options))


def acquire(dataset, config=CONFIG):
    return [run_unit(dataset.url, AcquireStage(dataset.url, config), unit) for unit in dataset.units]


def files(dataset, unit):
    return dataset.store.read_bytes(unit.shard_name), dataset.store.read_bytes(unit.sidecar_name)


def mixed_rows(server, count):
    """Good images that arrive in any order, between rows that fail in many ways."""
    rows = []
    for number in range(count):
        body = encode(noise(80 + number, 70, number), ("JPEG", "PNG", "WEBP")[number % 3])
        url = server.put(f"{number}.jpg", body, X_Robots_Tag="noai" if number % 10 == 3 else "all")
        rows.append({"url": f"{url}?delay={number * 7 % 5 / 50}", "caption": f"picture {number} é"})
    bad = ["status?code=404", "stall", "silent", "ring", "cut", "empty", "redirect?to=/body/0.jpg", "flood"]
    rows += [{"url": server.url(path), "caption": path} for path in bad]
    rows += [
        {"url": None, "caption": None},
        {"url": "file:///x", "caption": ""},
        {"url": rows[1]["url"], "caption": None},
    ]
    return rows[::2] + rows[1::2]


def test_a_unit_becomes_a_shard_a_sidecar_and_a_record(tmp_path, server):
    when = datetime.datetime(2020, 1, 2, tzinfo=datetime.UTC)
    rows = [
        {
            "url": server.put("a.jpg", encode(noise(200, 100))),
            "caption": "two words",
            "label": 7,
            "w": math.nan,
            "t": when,
        },
        {"url": server.url("status?code=404"), "caption": "gone", "label": 8, "w": 0.5, "t": None},
        {"url": server.put("b.png", encode(noise(20, 40), "PNG")), "caption": None, "label": None, "w": 1.0, "t": when},
    ]
    dataset = make(tmp_path, rows, extra_columns=("label", "w", "t"))
    [unit] = dataset.units
    [record] = acquire(dataset)

    table = dataset.sidecar(unit)
    assert table.schema.names == [*sidecar_schema().names, "label", "w", "t"]
    assert table.schema.field("label").type == pa.int64()
    first, gone, last = table.to_pylist()
    assert first["uid"] == uid(rows[0]["url"], "two words")
    assert (first["key"], first["status"], first["error"], first["http_status"]) == (
        "0000000000000",
        "success",
        None,
        200,
    )
    assert (first["original_format"], first["original_width"], first["original_height"]) == ("jpeg", 200, 100)
    assert (first["width"], first["height"], first["image_ext"], first["exif_orientation"]) == (128, 64, "jpg", 1)
    assert first["bytes"] == len(encode(noise(200, 100)))
    assert first["sha256"] == hashlib.sha256(encode(noise(200, 100))).digest()
    assert (gone["key"], gone["status"], gone["error_class"], gone["error"]) == (
        "0000000000001",
        "rejected",
        "http",
        "http_404",
    )
    assert all(gone[name] is None for name in ("bytes", "sha256", "width", "image_ext", "image_offset", "json_length"))
    assert (last["width"], last["height"], last["caption"], last["label"]) == (20, 40, None, None)

    with tarfile.open(fileobj=io.BytesIO(dataset.store.read_bytes(unit.shard_name))) as tar:
        members = tar.getmembers()
        assert [member.name for member in members] == [
            f"00000000000{n:02d}.{extension}" for n in (0, 2) for extension in ("jpg", "txt", "json")
        ]
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {(0, 0, 0, "", "", 0o644)}
        content = {member.name: tar.extractfile(member).read() for member in members}
    for row in (first, last):
        for member, extension in (("image", row["image_ext"]), ("text", "txt"), ("json", "json")):
            start = row[f"{member}_offset"]
            found = dataset.store.read_bytes(unit.shard_name, start, start + row[f"{member}_length"])
            assert found == content[f"{row['key']}.{extension}"]
        assert decode(content[f"{row['key']}.jpg"]).size == (row["width"], row["height"])
        assert content[f"{row['key']}.txt"].decode() == (row["caption"] or "")
    described = json.loads(content["0000000000000.json"])
    assert described["uid"] == first["uid"].hex()
    assert described["sha256"] == first["sha256"].hex()
    assert {name: described[name] for name in ("url", "caption", "label", "w", "t", "width")} == {
        "url": rows[0]["url"], "caption": "two words", "label": 7, "w": None,
        "t": "2020-01-02T00:00:00+00:00", "width": 128,
    }  # fmt: skip

    assert dataset.record("acquire", unit) == record
    assert record["counts"] == {"success": 2, "http_404": 1}
    assert (record["unit"], record["stage"], record["rows"]) == ("00000000", "acquire", 3)
    assert record["fingerprint"] == dataset.open_stage("acquire", CONFIG.identity()) == fingerprint(CONFIG.identity())
    for name, content in zip((unit.shard_name, unit.sidecar_name), files(dataset, unit), strict=True):
        assert record["files"][name] == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert [name for name in (tmp_path / "out").iterdir() if name.name.startswith(".tmp")] == []


def test_a_date_that_python_has_not_stops_nothing(tmp_path, server):
    url = server.put("a.jpg", encode(noise(90, 90)))
    days, seconds = pa.array([0, 10_000_000], pa.int32()), pa.array([10**12, 0], pa.int64())
    rows = pa.table({"url": [url] * 2, "caption": ["a", "b"], "d": days.cast(pa.date32()),
                     "t": seconds.cast(pa.timestamp("s"))})  # fmt: skip
    dataset = make(tmp_path, rows, extra_columns=("d", "t"))
    [record] = acquire(dataset)
    assert record["counts"] == {"success": 2}
    sidecar = dataset.sidecar(dataset.units[0])
    assert sidecar["d"].cast(pa.int32()).to_pylist() == [0, 10_000_000]
    with tarfile.open(fileobj=io.BytesIO(files(dataset, dataset.units[0])[0])) as tar:
        described = [json.loads(tar.extractfile(f"000000000000{n}.json").read()) for n in (0, 1)]
    assert [value["d"] for value in described] == ["1970-01-01", "29349-01-26"]
    assert described[1]["t"] == "1970-01-01 00:00:00.000"


@pytest.mark.slow
def test_the_same_bytes_come_from_any_concurrency(tmp_path, server):
    rows = mixed_rows(server, 20)
    found = []
    for number, speed in enumerate([(1, 1, 1), (4, 2, 2), (64, 64, 4)]):
        config = AcquireConfig(
            image_size=64, allow_private=True, first_byte_timeout=1, total_timeout=1.5, retry_backoff=0,
            concurrency=speed[0], per_host=speed[1], decode_threads=speed[2],
        )  # fmt: skip
        dataset = make(tmp_path, rows, f"out{number}", rows_per_unit=20)
        records = acquire(dataset, config)
        assert [sum(record["counts"].values()) for record in records] == [20, 11]
        found.append([files(dataset, unit) for unit in dataset.units])
    assert found[0] == found[1] == found[2]
    assert sum(record["counts"]["success"] for record in records) == 20 - 2 + 1 + 1


def test_a_unit_without_a_single_image_is_complete(tmp_path, server):
    dataset = make(tmp_path, [{"url": server.url("status?code=404"), "caption": "a"}, {"url": "", "caption": "b"}])
    [record] = acquire(dataset)
    [unit] = dataset.units
    assert record["counts"] == {"success": 0, "http_404": 1, "missing_url": 1}
    with tarfile.open(fileobj=io.BytesIO(files(dataset, unit)[0])) as tar:
        assert tar.getmembers() == []
    assert dataset.sidecar(unit).num_rows == 2


def test_scores_of_a_replaced_shard_are_due_again(tmp_path, server):
    """A row that failed has no score; after another try at it, its score must not stay missing."""
    dataset = make(
        tmp_path, [{"url": server.put("late.png", b"not yet"), "caption": "a late image"}] * 2, rows_per_unit=1
    )
    stage, first = ScoreStage(dataset.url, "caption"), dataset.units[0]
    assert [record["counts"]["success"] for record in acquire(dataset)] == [0, 0]
    dataset.open_stage(stage.name, stage.config)
    assert [run_unit(dataset.url, stage, unit)["counts"] for unit in dataset.units] == [
        {"success": 0, "rejected_upstream": 1}
    ] * 2
    server.put("late.png", encode(noise(90, 80), "PNG"))
    assert run_unit(dataset.url, AcquireStage(dataset.url, CONFIG), first)["counts"] == {"success": 1}
    assert dataset.pending(stage.name) == [first]
    with pytest.raises(ClipDataError, match="1 of 2 units have no score-caption results yet"):
        select(dataset, SelectConfig(name="words", where="words >= 2"))
    assert run_unit(dataset.url, stage, first)["counts"] == {"success": 1}
    assert select(dataset, SelectConfig(name="words", where="words >= 2"))["kept"] == 1


def test_a_changed_source_is_refused_and_leaves_nothing(tmp_path, server):
    dataset = make(tmp_path, [{"url": server.url("empty"), "caption": "a"}])
    pq.write_table(pa.Table.from_pylist([{"url": "http://b/", "caption": "b"}] * 2), tmp_path / "list.parquet")
    with pytest.raises(ClipDataError):
        acquire(dataset)
    assert dataset.store.list("shards") == []
    assert server.requests == []


def test_an_exception_that_no_code_foresees_costs_its_row(tmp_path, server, monkeypatch, caplog):
    from clip_data.acquire import image

    def trip(body, config):
        return image_treat(body, config) if len(body) > 10 else {}["width"]

    image_treat = image.prepare_image
    monkeypatch.setattr(image, "prepare_image", trip)
    rows = [{"url": server.put(name, encode(noise(90, 90))), "caption": name} for name in ("a", "b")]
    rows.insert(1, {"url": server.put("short", b"tiny"), "caption": "short"})
    dataset = make(tmp_path, rows)
    [record] = acquire(dataset)
    assert record["counts"] == {"success": 2, "unexpected:KeyError": 1}
    row = dataset.sidecar(dataset.units[0]).to_pylist()[1]
    assert (row["status"], row["error_class"], row["error"]) == ("rejected", "unexpected", "unexpected:KeyError")
    assert f"'{row['url']}' is rejected as unexpected:KeyError: 'width'" in caplog.text


@pytest.mark.parametrize("error", [MemoryError("short"), OSError(errno.ENFILE, "no files"), ClipDataError("ours")])
def test_trouble_of_this_machine_is_no_row_s_fault(tmp_path, server, monkeypatch, error):
    def fail(body, config):
        raise error

    monkeypatch.setattr("clip_data.acquire.image.prepare_image", fail)
    dataset = make(tmp_path, [{"url": server.put("a.jpg", encode(noise(90, 90))), "caption": "a"}] * 5)
    with pytest.raises((MemoryError, ClipError), match=r"short|no files|ours"):
        acquire(dataset)
    leaves_nothing(dataset)


def test_a_bug_outside_the_rows_stops_the_unit_and_leaves_nothing(tmp_path, server, monkeypatch):
    monkeypatch.setattr("clip_data.acquire.stage.uid", lambda url, caption: 1 / 0)
    dataset = make(tmp_path, [{"url": server.put("a.jpg", encode(noise(90, 90))), "caption": "a"}] * 5)
    with pytest.raises(ZeroDivisionError):
        acquire(dataset)
    leaves_nothing(dataset)


@pytest.mark.parametrize("limit", [5_000, 20_000, 30_000])
def test_a_disk_that_takes_no_more_is_one_line_and_leaves_nothing(tmp_path, server, limit):
    """The limits stop the spool of images (9 kB), the members of the tar, and its end (30,720 bytes)."""
    dataset = make(tmp_path, [{"url": server.put("a.jpg", encode(noise(64, 64))), "caption": "a"}] * 6)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(ClipError, match=rf"^cannot write in {dataset.url}: File too large; .*another folder$"):
            acquire(dataset)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    leaves_nothing(dataset)
    [record] = acquire(dataset)
    assert record["counts"] == {"success": 6}
    assert record["files"]["shards/00000000.tar"]["bytes"] > 30_000


def leaves_nothing(dataset):
    assert dataset.store.list("shards") == []
    assert not dataset.committed("acquire")
    assert [path for path in Path(dataset.url).iterdir() if path.name.startswith(".tmp-")] == []


HEADERS = [
    "Content-Type",
    "Content-Length",
    "Content-Encoding",
    "Transfer-Encoding",
    "Location",
    "X-Robots-Tag",
    "Link",
]
ODD = [
    b"\xff\xfe",
    b"\xed\xa0\x80",
    b"\0",
    b"\x01",
    b"",
    b"-1",
    b"9" * 5000,
    b"chunked",
    b"gzip",
    b"br",
    b"http://xn--a/",
]
HOSTILE = [
    *(b"HTTP/1.1 %d X\r\n%b: %b\r\n\r\nbody" % (status, name.encode(), odd)
      for status in (200, 302) for name in HEADERS for odd in ODD),
    *(b"HTTP/1.1 %b\r\n\r\nbody" % line
      for line in (b"0 X", b"000 X", b"99 X", b"101 X", b"600 X", b"999 X", b"1000 X", b"-1 X", b"2e X", b"\xff", b"")),
    *(b"HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk
      for chunk in (b"zz\r\n", b"-1\r\n", b"f" * 20 + b"\r\n", b"3\r\nabcd", b"3;\xff\r\nabc\r\n0\r\n\r\n", b"")),
    b"", b"\xff" * 50, b"\0" * 50, b"\r\n\r\n", b"HTTP/2 200\r\n\r\n",
]  # fmt: skip


def test_whatever_a_server_sends_becomes_a_code(tmp_path, server):
    """Replies that are wrong in a known way, and 400 of them with random damage on top."""
    random_ = random.Random(7)
    replies = list(HOSTILE)
    for _ in range(400):
        damaged = bytearray(random_.choice(HOSTILE))
        for _ in range(random_.randint(1, 4)):
            place = random_.randrange(len(damaged) + 1)
            damaged[place : place + random_.randrange(3)] = random_.choice(
                [b"\xff", b"\r\n", b"\0", b":", b" ", b"\x80\x81"]
            )
        replies.append(bytes(damaged))
    rows = [{"url": server.put_raw(str(n), reply), "caption": str(n)} for n, reply in enumerate(replies)]
    rows.append({"url": server.put("good", encode(noise(90, 90))), "caption": "good"})
    config = AcquireConfig(allow_private=True, total_timeout=3, retries=0, per_host=64)
    dataset = make(tmp_path, rows)
    [record] = acquire(dataset, config)
    assert set(record["counts"]) <= {"success", *(code.value for code in Code)}
    assert record["counts"]["success"] == 1
    assert len(record["counts"]) > 8
    table = dataset.sidecar(dataset.units[0])
    assert table["caption"].to_pylist() == [row["caption"] for row in rows]
    table.validate(full=True)


def test_slow_rows_do_not_hold_up_the_others(tmp_path, server):
    """20 rows that run into their deadline of 0.5 s come first and last; together they take one such time, not 20."""
    slow = [{"url": server.url(f"stall?n={n}"), "caption": "slow"} for n in range(20)]
    good = [{"url": server.put("a.jpg", encode(noise(90, 90))), "caption": "a"}] * 20
    dataset = make(tmp_path, slow + good)
    config = AcquireConfig(image_size=64, allow_private=True, total_timeout=0.5, per_host=64, retries=0)
    [record] = acquire(dataset, config)
    assert record["counts"] == {"success": 20, "timeout_total": 20}
    assert record["seconds"] < 3


@pytest.mark.slow
def test_memory_does_not_grow_with_the_unit(tmp_path, server):
    """1,000 stored images of 120 kB would be 120 MB."""
    url = server.put("a.png", encode(noise(200, 200), "PNG", compress_level=0))
    config = AcquireConfig(
        allow_private=True, resize_mode="no", skip_reencode=True, encode_format="png", encode_quality=0, per_host=64
    )
    acquire(make(tmp_path / "few", [{"url": url, "caption": "a"}] * 100), config)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    [record] = acquire(make(tmp_path / "many", [{"url": url, "caption": "a"}] * 1000), config)
    assert record["counts"] == {"success": 1000}
    assert record["files"]["shards/00000000.tar"]["bytes"] > 120_000_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 60_000  # kB


def test_damage_on_the_way_to_the_disk_is_noticed(tmp_path):
    with TarWriter(tmp_path / "a.tar") as tar:
        offset, length = tar.add("a.txt", b"hello")
    members = [("a.txt", offset, length)]
    verify(tmp_path / "a.tar", tar.sha256, members)
    for wrong in ([], [("a.txt", offset + 512, length)], [("b.txt", offset, length)]):
        with pytest.raises(OSError, match="not reliable"):
            verify(tmp_path / "a.tar", tar.sha256, wrong)
    content = bytearray((tmp_path / "a.tar").read_bytes())
    content[offset] ^= 1
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(OSError, match="not reliable"):
        verify(tmp_path / "a.tar", tar.sha256, members)


@pytest.mark.parity
def test_webdataset_reads_the_shards(tmp_path, server):
    import webdataset

    rows = mixed_rows(server, 12)
    dataset = make(tmp_path, rows)
    [record] = acquire(dataset)
    path = str(tmp_path / "out" / dataset.units[0].shard_name)
    samples = list(
        webdataset.WebDataset(path, shardshuffle=False).decode("rgb8").to_tuple("__key__", "jpg", "txt", "json")
    )
    assert len(samples) == record["counts"]["success"] > 10
    sidecar = {row["key"]: row for row in dataset.sidecar(dataset.units[0]).to_pylist()}
    for key, image, text, described in samples:
        row = sidecar[key]
        assert (image.shape, text) == ((row["height"], row["width"], 3), row["caption"] or "")
        assert described["uid"] == row["uid"].hex()
