"""The store: nothing partial under a final name, plain errors, local and other file systems alike."""

import os
import pickle
import signal
import socket
import subprocess
import sys
import textwrap
import time

import fsspec
import pyarrow as pa
import pytest

from clip_data.errors import ClipDataError
from clip_data.store import Store, table_bytes


@pytest.fixture(params=["local", "memory"])
def store(request, tmp_path):
    if request.param == "local":
        yield Store(tmp_path / "folder")
    else:
        yield Store("memory://folder")
        fsspec.filesystem("memory").rm("/", recursive=True)


def test_what_is_written_is_read(store, tmp_path):
    store.write_bytes("a/b/x.bin", b"0123456789")
    store.write_json("a/x.json", {"β": [1, None]})
    store.write_table("t.parquet", pa.table({"n": [1, 2], "text": ["x", None]}))
    made = tmp_path / "made"
    made.write_bytes(b"published")
    store.publish(made, "a/b/y.bin")
    assert store.read_bytes("a/b/x.bin") == b"0123456789"
    assert store.read_range("a/b/x.bin", 3, 4) == b"3456"
    assert store.read_json("a/x.json") == {"β": [1, None]}
    assert store.read_table("t.parquet", ["text"]).to_pydict() == {"text": ["x", None]}
    assert store.read_bytes("a/b/y.bin") == b"published"
    assert not made.exists()
    assert store.list() == ["a", "t.parquet"]
    assert store.list("a") == ["a/b", "a/x.json"]
    assert store.list("none") == []
    assert (store.exists("a/b/x.bin"), store.exists("a/b/z.bin"), store.size("a/b/x.bin")) == (True, False, 10)
    assert pickle.loads(pickle.dumps(store)).read_bytes("a/b/x.bin") == b"0123456789"


def test_staging_is_invisible_and_leaves_nothing(store):
    with store.staging() as folder:
        (folder / "half").write_bytes(b"x")
        assert store.list() == []
    assert not folder.exists()


def test_reading_what_is_missing_or_damaged(store):
    store.write_bytes("bad.json", b'{"half": ')
    store.write_bytes("bad.parquet", b"PAR1")
    store.write_table("t.parquet", pa.table({"n": [1]}))
    for call, message in [
        (lambda: store.read_bytes("none"), "none does not exist"),
        (lambda: store.read_json("bad.json"), "bad.json is damaged: not JSON"),
        (lambda: store.read_table("bad.parquet"), "bad.parquet is damaged: not a parquet file"),
        (lambda: store.read_table("t.parquet", ["m"]), "has no column 'm'; it has n"),
    ]:
        with pytest.raises(ClipDataError, match=message):
            call()


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    store = Store(tmp_path / "file" / "folder")  # refused for root as well
    made = tmp_path / "made"
    made.write_bytes(b"x")
    for call in (lambda: store.write_bytes("x", b""), lambda: store.publish(made, "x"), store.staging().__enter__):
        with pytest.raises(ClipDataError, match=r"cannot write .*/file/folder.*: Not a directory"):
            call()
    with pytest.raises(ClipDataError, match="cannot list"):
        store.list()
    with pytest.raises(ClipDataError, match="cannot write"):
        Store("/proc/self").write_bytes("x", b"")


def test_what_a_killed_process_left_is_swept_and_nothing_else(tmp_path):
    store = Store(tmp_path)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    host = socket.gethostname()
    left = tmp_path / f".tmp-{host}-{dead.pid}-abc"
    others = [tmp_path / f".tmp-{host}-{os.getpid()}-abc", tmp_path / f".tmp-elsewhere-{dead.pid}-abc"]
    for folder in (left, *others):
        folder.mkdir()
        (folder / "shard.tar").write_bytes(b"half")
    with store.staging() as mine:
        assert mine.is_dir()
    assert not left.exists()
    assert all((folder / "shard.tar").exists() for folder in others)


def test_an_object_store_that_cannot_be_reached_is_one_line(monkeypatch):
    for name, value in {
        "ACCESS_KEY_ID": "a",
        "SECRET_ACCESS_KEY": "b",
        "ENDPOINT_URL": "http://127.0.0.1:1",
        "MAX_ATTEMPTS": "1",
    }.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    store = Store("s3://bucket/folder")
    calls = [lambda: store.exists("x"), store.list, lambda: store.write_bytes("x", b""), lambda: store.read_bytes("x")]
    for call in calls:
        with pytest.raises(ClipDataError, match=r"cannot .* s3://bucket/folder.*127\.0\.0\.1:1"):
            call()


def test_an_unknown_file_system():
    with pytest.raises(ClipDataError, match="cannot open the folder 'nosuchfs://x'"):
        Store("nosuchfs://x")


def test_the_same_table_has_the_same_bytes():
    table = pa.table({"n": list(range(1000)), "text": [str(i % 7) for i in range(1000)]})
    assert table_bytes(table) == table_bytes(table.slice(0))


WRITER = """
    import sys
    from clip_data.store import Store
    store = Store(sys.argv[1])
    blocks = [bytes([i]) * 20_000_000 for i in range(2)]
    store.write_bytes("big", blocks[0])
    print("ready", flush=True)
    while True:
        for block in blocks:
            store.write_bytes("big", block)
            with store.staging() as folder:
                (folder / "x").write_bytes(block)
                store.publish(folder / "x", "published")
"""


def test_a_killed_writer_leaves_nothing_partial(tmp_path):
    for attempt in range(4):
        writer = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(WRITER), tmp_path], stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout.readline() == "ready\n"
        time.sleep(0.13 + 0.05 * attempt)
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
        store = Store(tmp_path)
        assert set(store.list()) <= {"big", "published"}
        for name in store.list():
            data = store.read_bytes(name)
            assert len(data) == 20_000_000
            assert data == data[:1] * len(data)
