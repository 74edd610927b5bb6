"""The lock of a run folder in an object store."""

import time

import pytest

from clip_core.store import Store
from clip_train import lease
from clip_train.errors import ClipTrainError


def test_a_lease_keeps_others_out_and_one_without_signs_of_life_expires(monkeypatch):
    monkeypatch.setattr(lease, "EXPIRED_S", 0.6)
    monkeypatch.setattr(lease, "RENEWED_S", 0.1)
    store = Store("memory://lease-of-a-run")
    monkeypatch.setattr(lease.socket, "gethostname", lambda: "one")
    with lease.locked(store):
        monkeypatch.setattr(lease.socket, "gethostname", lambda: "two")
        with pytest.raises(ClipTrainError, match=r"another process is training in memory.*\(process \d+ on one\)"):
            lease.locked(store).__enter__()
    assert not store.exists(lease.NAME)
    store.write_json(lease.NAME, {"holder": "x", "host": "one", "process": 1, "beat": 3})
    with lease.locked(store):
        assert store.read_json(lease.NAME)["host"] == "two"
    store.write_json(lease.NAME, {"holder": "x", "host": "two", "process": 2**22 + 1, "beat": 3})
    began = time.monotonic()
    with lease.locked(store):  # of this host, and not running
        assert time.monotonic() - began < 0.5
