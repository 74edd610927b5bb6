"""The store: nothing partial under a final name, plain errors, local and other file systems alike."""

import errno
import os
import pickle
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clip_core import ClipError
from clip_core.config import ConfigError
from clip_core.store import Store, is_claimed
from clip_data.tables import read_table, table_bytes, write_table
from tests.support.s3 import s3_server


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
    write_table(store, "t.parquet", pa.table({"n": [1, 2], "text": ["x", None]}))
    made = tmp_path / "made"
    made.write_bytes(b"published")
    store.publish(made, "a/b/y.bin")
    assert store.read_bytes("a/b/x.bin") == b"0123456789"
    assert store.read_bytes("a/b/x.bin", 3, 7) == b"3456"
    assert store.read_json("a/x.json") == {"β": [1, None]}
    assert read_table(store, "t.parquet", ["text"]).to_pydict() == {"text": ["x", None]}
    assert store.read_bytes("a/b/y.bin") == b"published"
    assert not made.exists()
    assert store.list() == ["a", "t.parquet"]
    assert store.list("a") == ["a/b", "a/x.json"]
    assert store.list("none") == []
    assert (store.exists("a/b/x.bin"), store.exists("a/b/z.bin"), store.size("a/b/x.bin")) == (True, False, 10)
    assert pickle.loads(pickle.dumps(store)).read_bytes("a/b/x.bin") == b"0123456789"
    for _ in range(2):  # the second time there is nothing to remove
        store.remove("a/b/x.bin")
        assert (store.exists("a/b/x.bin"), store.exists("a/b/y.bin")) == (False, True)


def test_staging_is_invisible_and_leaves_nothing(store):
    with store.staging() as folder:
        (folder / "half").write_bytes(b"x")
        assert store.list() == []
    assert not folder.exists()


def test_reading_what_is_missing_or_damaged(store):
    store.write_bytes("bad.json", b'{"half": ')
    store.write_bytes("bad.parquet", b"PAR1")
    write_table(store, "t.parquet", pa.table({"n": [1]}))
    for call, message in [
        (lambda: store.read_bytes("none"), "none does not exist"),
        (lambda: store.read_json("bad.json"), "bad.json is damaged: not JSON"),
        (lambda: read_table(store, "bad.parquet"), "bad.parquet is damaged: not a parquet file"),
        (lambda: read_table(store, "t.parquet", ["m"]), "has no column 'm'; it has n"),
    ]:
        with pytest.raises(ClipError, match=message):
            call()


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    store = Store(tmp_path / "file" / "folder")  # refused for root as well
    made = tmp_path / "made"
    made.write_bytes(b"x")
    for call in (lambda: store.write_bytes("x", b""), lambda: store.publish(made, "x"), store.staging().__enter__):
        with pytest.raises(ClipError, match=r"cannot write .*/file/folder.*: Not a directory"):
            call()
    with pytest.raises(ClipError, match="cannot list"):
        store.list()
    with pytest.raises(ClipError, match="cannot write"):
        Store("/proc/self").write_bytes("x", b"")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EMFILE])
def test_an_error_of_the_disk_under_construction_is_one_line(tmp_path, number):
    store = Store(tmp_path)

    def build():
        with store.staging() as folder:
            (folder / "half").write_bytes(b"x")
            raise OSError(number, os.strerror(number))

    with pytest.raises(ClipError, match=rf"^cannot write in {tmp_path}: {os.strerror(number)}; \w+") as caught:
        build()
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ZeroDivisionError), store.staging():
        raise ZeroDivisionError


def test_what_a_bucket_s_files_are_built_in_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def build():
        with Store("memory://folder").staging() as folder:
            assert folder.parent == tmp_path
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(ClipError, match=f"^cannot write in {tmp_path}: No space left"):
        build()
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_takes_no_more_is_one_line_for_every_writer(tmp_path):
    store, big = Store(tmp_path), bytes(20_000)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        for write in (
            lambda: store.write_bytes("a/x", big),
            lambda: store.write_json("a/x", {"x": "y" * 20_000}),
            lambda: write_table(store, "a/x", pa.table({"n": np.random.default_rng(0).random(9000)})),
        ):
            with pytest.raises(ClipError, match=rf"cannot write {tmp_path}/a/x: File too large; .*ulimit"):
                write()
        with pytest.raises(ClipError, match=f"cannot write in {tmp_path}: .*too large"), store.staging() as folder:
            pq.write_table(pa.table({"n": np.random.default_rng(0).random(9000)}), folder / "x")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert store.list("a") == []
    assert [path.name for path in tmp_path.rglob("*")] == ["a"]


def test_a_file_that_is_written_piece_by_piece_appears_when_it_is_complete(store, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with store.writing("a/x") as file:
        file.write(b"one")
        assert store.list("a") == []
        file.write(b"two")
    assert store.read_bytes("a/x") == b"onetwo"
    # An error of the block is not the file's: it is neither translated nor does it leave anything behind.
    with pytest.raises(PermissionError, match="of another file"), store.writing("a/x") as file:  # noqa: PT012
        file.write(b"half")
        raise PermissionError("of another file")
    assert store.read_bytes("a/x") == b"onetwo"
    assert not list(tmp_path.rglob(".tmp-*"))


def test_a_folder_belongs_to_one_config(store):
    own = ("plan.parquet",)
    store.write_bytes("plan.parquet", b"")
    assert not is_claimed(store, {"seed": 1}, "owner.json", what="thing", own=own)
    with pytest.raises(ConfigError, match=r"is not empty and holds no thing \(it has 'plan.parquet', no owner.json\)"):
        is_claimed(store, {"seed": 1}, "owner.json", what="thing")
    store.write_json("owner.json", {"seed": 1, "speed": 2, "fingerprint": "of these"})
    assert is_claimed(store, {"seed": 1, "speed": 3}, "owner.json", free=("speed",))
    with pytest.raises(ConfigError, match=r"holds another thing: seed is 1 there and 2 now; choose another output"):
        is_claimed(store, {"seed": 2, "speed": 2}, "owner.json", what="thing")
    store.write_json("owner.json", ["not", "a", "table"])
    with pytest.raises(ConfigError, match=r"owner.json is damaged: it holds no table"):
        is_claimed(store, {"seed": 1}, "owner.json")


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


@pytest.fixture(scope="module")
def s3():
    """Settings of an S3 server with no bucket."""
    with s3_server() as settings:
        yield {**settings, "AWS_MAX_ATTEMPTS": "1"}


@pytest.mark.parametrize(
    ("url", "settings", "message"),
    [
        ("s3://bucket/folder", {"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}, r"127\.0\.0\.1:1.*; check AWS_ENDPOINT_URL"),
        ("s3://bucket/folder", {"AWS_ENDPOINT_URL": "127.0.0.1:1"}, "Invalid endpoint: 127.0.0.1:1"),
        ("s3://bucket/folder", {"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None}, "; set AWS_ACCESS_KEY_ID"),
        ("s3://bucket/folder", {"AWS_SECRET_ACCESS_KEY": None}, "; set AWS_ACCESS_KEY_ID"),
        ("s3://bucket/folder", {"AWS_PROFILE": "nobody"}, "nobody"),
        ("s3://no bucket/folder", {}, "no bucket"),
    ],
)
def test_an_object_store_that_cannot_be_used_is_one_line(s3, monkeypatch, tmp_path, url, settings, message):
    import s3fs

    monkeypatch.setenv("HOME", str(tmp_path))
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in {**s3, **settings}.items():
        if value is not None:
            monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        store = Store(url)
        for call in (
            lambda: store.exists("x"),
            store.list,
            lambda: store.write_bytes("x", b""),
            lambda: store.read_bytes("x"),
        ):
            with pytest.raises(ClipError, match=rf"^cannot \w+ {url}.*{message}") as caught:
                call()
            assert "\n" not in str(caught.value)
    finally:
        s3fs.S3FileSystem.clear_instance_cache()


def test_a_bucket_that_is_not_there(s3, monkeypatch):
    import s3fs

    for name, value in s3.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    store = Store("s3://bucket/folder")
    assert (store.list(), store.exists("x")) == ([], False)
    with pytest.raises(ClipError, match=r"^cannot write s3://bucket/folder/x: .*bucket does not exist; create it"):
        store.write_bytes("x", b"")
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.parametrize("url", ["s3://", "s3:", "s3:/bucket/folder", "memory:x"])
def test_a_url_without_a_bucket_is_no_local_folder(url):
    with pytest.raises(ClipError, match=f"^'{url}' names no folder: write"):
        Store(url)


def test_an_unknown_file_system():
    with pytest.raises(ClipError, match="cannot open the folder 'nosuchfs://x'"):
        Store("nosuchfs://x")


def test_the_same_table_has_the_same_bytes():
    table = pa.table({"n": list(range(1000)), "text": [str(i % 7) for i in range(1000)]})
    assert table_bytes(table) == table_bytes(table.slice(0))


WRITER = """
    import sys
    from clip_core.store import Store
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


@pytest.mark.slow
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
