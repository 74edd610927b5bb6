"""Keeps a second process from training in a run folder: a lock of the file system, or a lease in an object store."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from clip_core import ClipError
from clip_core.console import warn
from clip_core.store import Store
from clip_train.errors import ClipTrainError

NAME = ".lock"
RENEWED_S = 10.0  # seconds between two signs of life
EXPIRED_S = 45.0  # a lease that shows none for so long is nobody's


@contextmanager
def locked(store: Store) -> Iterator[None]:
    """Holds the run folder for the block. Raises ClipTrainError if another process trains in it."""
    with _flock(store) if store.local else _lease(store):
        yield


@contextmanager
def _flock(store: Store) -> Iterator[None]:
    """The lock ends with this process in any case."""
    try:
        os.makedirs(store.path, exist_ok=True)
        handle = os.open(store.full(NAME), os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise ClipTrainError(f"cannot write in run = {store.url}: {error.strerror or error}") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise ClipTrainError(f"another process is training in {store.url}: wait for it, or stop it") from error
    try:
        yield
    finally:
        os.close(handle)


@contextmanager
def _lease(store: Store) -> Iterator[None]:
    """Writes signs of life while the block runs. A killed process leaves a lease that expires, without clocks."""
    mine: dict[str, Any] = {"holder": uuid.uuid4().hex, "host": socket.gethostname(), "process": os.getpid(), "beat": 0}
    _wait_until_free(store)
    store.write_json(NAME, mine)
    over = threading.Event()

    def renew() -> None:
        while not over.wait(RENEWED_S):
            try:
                if _read(store).get("holder") != mine["holder"]:
                    warn(f"another process has taken over {store.url}: this one stops")
                    os.kill(os.getpid(), signal.SIGTERM)
                    return
                mine["beat"] += 1
                store.write_json(NAME, mine)
            except ClipError as error:  # the next one may succeed
                warn(str(error))

    thread = threading.Thread(target=renew, name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        if _read(store).get("holder") == mine["holder"]:
            store.remove(NAME)


def _wait_until_free(store: Store) -> None:
    first = _read(store)
    if not first or (first.get("host") == socket.gethostname() and not _runs(first.get("process"))):
        return
    until = time.monotonic() + EXPIRED_S
    warn(f"{store.url} has the lock of a process on {first.get('host')}: waiting {EXPIRED_S:g} s for a sign of life")
    while time.monotonic() < until:
        time.sleep(min(1.0, EXPIRED_S / 10))
        now = _read(store)
        if not now:
            return
        if now != first:
            raise ClipTrainError(
                f"another process is training in {store.url} (process {now.get('process')} on {now.get('host')}): wait "
                "for it, or stop it"
            )


def _read(store: Store) -> dict[str, Any]:
    if not store.exists(NAME):
        return {}
    found = store.read_json(NAME)
    return found if isinstance(found, dict) else {}


def _runs(process: Any) -> bool:
    try:
        os.kill(int(process), 0)
    except (TypeError, ValueError, ProcessLookupError):
        return False
    except OSError:
        return True
    return True
