"""The stage as a whole: rows in, a shard, a sidecar and a commit record out."""

import datetime
import hashlib
import io
import json
import math
import resource
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clip_data.acquire import AcquireConfig, AcquireTask
from clip_data.acquire.shard import TarWriter, sidecar_schema, verify
from clip_data.config import fingerprint
from clip_data.dataset import shard_name, sidecar_name
from clip_data.errors import ClipDataError
from clip_data.plan import SIDECAR_COLUMNS, PlanConfig, plan
from clip_data.uid import uid
from tests.support.hostile_server import HostileServer
from tests.support.pictures import decode, encode, noise

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
    return [AcquireTask(dataset.root, config)(unit) for unit in dataset.units]


def files(dataset, unit):
    return dataset.store.read_bytes(shard_name(unit)), dataset.store.read_bytes(sidecar_name(unit))


def mixed_rows(server, count):
    """Good pictures that arrive in any order, between rows that fail in many ways."""
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

    with tarfile.open(fileobj=io.BytesIO(dataset.store.read_bytes(shard_name(unit)))) as tar:
        members = tar.getmembers()
        assert [member.name for member in members] == [
            f"00000000000{n:02d}.{extension}" for n in (0, 2) for extension in ("jpg", "txt", "json")
        ]
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {(0, 0, 0, "", "", 0o644)}
        content = {member.name: tar.extractfile(member).read() for member in members}
    for row in (first, last):
        for member, extension in (("image", row["image_ext"]), ("text", "txt"), ("json", "json")):
            found = dataset.store.read_range(shard_name(unit), row[f"{member}_offset"], row[f"{member}_length"])
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
    assert record["fingerprint"] == dataset.open_stage("acquire", CONFIG.settings()) == fingerprint(CONFIG.settings())
    for name, content in zip((shard_name(unit), sidecar_name(unit)), files(dataset, unit), strict=True):
        assert record["files"][name] == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert [name for name in (tmp_path / "out").iterdir() if name.name.startswith(".tmp")] == []


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


def test_a_unit_without_a_single_picture_is_complete(tmp_path, server):
    dataset = make(tmp_path, [{"url": server.url("status?code=404"), "caption": "a"}, {"url": "", "caption": "b"}])
    [record] = acquire(dataset)
    [unit] = dataset.units
    assert record["counts"] == {"success": 0, "http_404": 1, "missing_url": 1}
    with tarfile.open(fileobj=io.BytesIO(files(dataset, unit)[0])) as tar:
        assert tar.getmembers() == []
    assert dataset.sidecar(unit).num_rows == 2


def test_a_changed_source_is_refused_and_leaves_nothing(tmp_path, server):
    dataset = make(tmp_path, [{"url": server.url("empty"), "caption": "a"}])
    pq.write_table(pa.Table.from_pylist([{"url": "http://b/", "caption": "b"}] * 2), tmp_path / "list.parquet")
    with pytest.raises(ClipDataError):
        acquire(dataset)
    assert dataset.store.list("shards") == []
    assert server.requests == []


def test_a_bug_stops_the_unit_and_leaves_nothing(tmp_path, server, monkeypatch):
    """Only faults of a URL become codes; anything unexpected is raised as it is."""
    monkeypatch.setattr("clip_data.acquire.image.sniff", lambda body: 1 / 0)
    dataset = make(tmp_path, [{"url": server.put("a.jpg", encode(noise(90, 90))), "caption": "a"}] * 20)
    with pytest.raises(ZeroDivisionError):
        acquire(dataset)
    assert dataset.store.list("shards") == []
    assert not dataset.committed("acquire")


def test_slow_rows_do_not_hold_up_the_others(tmp_path, server):
    """20 rows that run into their deadline of 0.5 s come first and last; together they take one such time, not 20."""
    slow = [{"url": server.url(f"stall?n={n}"), "caption": "slow"} for n in range(20)]
    good = [{"url": server.put("a.jpg", encode(noise(90, 90))), "caption": "a"}] * 20
    dataset = make(tmp_path, slow + good)
    config = AcquireConfig(image_size=64, allow_private=True, total_timeout=0.5, per_host=64, retries=0)
    [record] = acquire(dataset, config)
    assert record["counts"] == {"success": 20, "timeout_total": 20}
    assert record["seconds"] < 3


def test_memory_does_not_grow_with_the_unit(tmp_path, server):
    """1,000 stored pictures of 120 kB would be 120 MB."""
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


def test_the_plan_knows_the_columns_of_the_sidecar():
    assert set(sidecar_schema().names) == SIDECAR_COLUMNS


@pytest.mark.parity
def test_webdataset_reads_the_shards(tmp_path, server):
    import webdataset

    rows = mixed_rows(server, 12)
    dataset = make(tmp_path, rows)
    [record] = acquire(dataset)
    path = str(tmp_path / "out" / shard_name(dataset.units[0]))
    samples = list(
        webdataset.WebDataset(path, shardshuffle=False).decode("rgb8").to_tuple("__key__", "jpg", "txt", "json")
    )
    assert len(samples) == record["counts"]["success"] > 10
    sidecar = {row["key"]: row for row in dataset.sidecar(dataset.units[0]).to_pylist()}
    for key, image, text, described in samples:
        row = sidecar[key]
        assert (image.shape, text) == ((row["height"], row["width"], 3), row["caption"] or "")
        assert described["uid"] == row["uid"].hex()
