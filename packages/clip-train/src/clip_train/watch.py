"""Stop signals, and the end of a process that cannot react to them.

Python runs signal handlers in the main thread, which may be in a collective or in a read of storage that never returns.
A separate thread therefore checks the deadlines.
"""

from __future__ import annotations

import faulthandler
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TypeVar

from clip_data.stream.worker import kill_workers
from clip_train.errors import Requeue, Stopped

GRACE_S = {
    signal.SIGTERM: 45.0,
    signal.SIGINT: 45.0,
    signal.SIGUSR1: 240.0,  # slurm.WARNING_S comes before the time limit
}
"""Longest time from a stop signal to the end of the process."""
DIAGNOSIS_S = 10.0  # seconds of the grace for asking what the other ranks are doing
POLL_S = 0.5
AT_ONCE = (signal.SIGTERM, signal.SIGINT)  # a second one ends the process without waiting for anything
REPEAT_S = 2.0  # launchers pass on a signal that the process has had directly: sooner, it is the same one
T = TypeVar("T")


class Watch:
    """Whether this process has to stop, and the deadlines of what it is doing."""

    def __init__(self, timeout: float, *, join: float | None = None, storage: float | None = None) -> None:
        self.timeout = timeout
        """largest number of seconds that one wait for other ranks may take"""
        self.join = timeout if join is None else join
        """largest number of seconds that the ranks may take to come together"""
        self.storage = timeout if storage is None else storage
        """largest number of seconds that one task of rank 0, such as a save, may take"""
        self.saved: int | None = None
        """step of the newest checkpoint"""
        self.training = False
        """whether a stop signal waits for the end of a step"""
        self.wanted = False
        """whether a stop signal has arrived"""
        self.name = "the trainer"
        self.diagnose: Callable[[], str] = lambda: ""
        """describes what the other ranks are doing; may take seconds, or never return"""
        self._main = threading.get_ident()
        self._deadlines: list[tuple[float, str, int]] = []  # (time, description for the message, signal or 0)
        self._first: dict[int, float] = {}  # when a signal first came
        self._ended = threading.Event()

    @contextmanager
    def limited(self, seconds: float, what: str) -> Iterator[None]:
        """Ends the process if the block takes longer. `what` completes the message, as in "waited 3 s " + what."""
        limit = (time.monotonic() + seconds, f"has waited {seconds:g} s {what}", 0)
        self._deadlines.append(limit)
        try:
            yield
        finally:
            self._deadlines.remove(limit)

    def collective(self) -> AbstractContextManager[None]:
        """Limits work of all ranks together to `timeout`."""
        return self.limited(self.timeout, "(train.timeout) for others")

    def storing(self) -> AbstractContextManager[None]:
        """Limits what rank 0 does for all ranks, mostly in the run folder, to `storage`."""
        return self.limited(self.storage, "(checkpoint.timeout) for storage")

    def batches(self, source: Iterable[T], seconds: float) -> Iterator[T]:
        """Yields the items of `source` and limits the wait for each one."""
        items = iter(source)
        while True:
            with self.limited(seconds, "(data.timeout) for a batch"):
                try:
                    item = next(items)
                except StopIteration:
                    return
            yield item

    def ending(self) -> SystemExit:
        """Returns the exception that ends the process after a stop signal."""
        return Stopped() if self.saved is None else Requeue(self.saved)

    def where(self) -> str:
        """Returns the function of this project that the main thread is in, for messages."""
        frame = sys._current_frames().get(self._main)
        while frame is not None:
            module = frame.f_globals.get("__name__", "")
            if module.startswith("clip_") and module not in ("clip_train.parallel", __name__):
                return f"{module}.{frame.f_code.co_qualname}"
            frame = frame.f_back
        return "its start"

    @contextmanager
    def running(self) -> Iterator[Watch]:
        """Handles the stop signals until the end of the block, if this is the main thread."""
        ours, theirs = socket.socketpair()
        thread = threading.Thread(target=self._run, args=(ours,), name="clip-train watch", daemon=True)
        handlers = {}
        woken = -1
        if threading.current_thread() is threading.main_thread():
            theirs.setblocking(False)
            woken = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
            handlers = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGUSR1)}
        thread.start()
        try:
            yield self
        finally:
            if handlers:
                signal.set_wakeup_fd(woken)
            for number, handler in handlers.items():
                signal.signal(number, handler)
            self._ended.set()
            thread.join()
            ours.close()
            theirs.close()

    def _note(self, number: int, frame: object) -> None:
        self.wanted = True
        if not self.training:
            raise self.ending()

    def _run(self, signals: socket.socket) -> None:
        while not self._ended.is_set():
            if select.select([signals], [], [], POLL_S)[0]:
                for number in signals.recv(64):
                    self._hear(number)
            for limit in list(self._deadlines):
                if limit[0] < time.monotonic():
                    self._end(limit)

    def _hear(self, number: int) -> None:
        if number not in GRACE_S:
            return
        now, name = time.monotonic(), signal.Signals(number).name
        first = self._first.setdefault(number, now)
        if first == now:
            grace = min(self.timeout, GRACE_S[signal.Signals(number)])
            at = now + max(grace - DIAGNOSIS_S, grace / 2)
            self._deadlines.append((at, f"was sent {name} {grace:g} s ago", number))
        elif number in AT_ONCE and now - first >= REPEAT_S:
            self._exit(number, f"was sent {name} a second time and ends at once in {self.where()}")

    def _end(self, limit: tuple[float, str, int]) -> None:
        """Ends the process because of a limit, with what the other ranks are doing."""
        _, why, number = limit
        where, others = self.where(), ["the state of the other ranks is not known"]
        _for_seconds(DIAGNOSIS_S, lambda: others.append(self.diagnose() or "no other rank is missing"))
        if self._ended.is_set() or limit not in self._deadlines:
            return  # the main thread has finished its work in the meantime
        self._exit(number, f"{why} and still is in {where}; {others[-1]}", _stacks())

    def _exit(self, number: int, why: str, stacks: str = "") -> None:
        """Ends the process at once. Work that may block runs in daemon threads."""
        again = "run again" if self.saved is None else f"run again to continue after step {self.saved}, which is saved"
        shown = f"stacks of {self.name} (process {os.getpid()}):\n{stacks}\n" if stacks else ""
        line = f"\n{shown}error: {self.name} {why}; {again}"
        _for_seconds(1.0, lambda: print(line, file=sys.stderr, flush=True))
        kill_workers()
        os._exit({0: 2, signal.SIGINT: 130}.get(number) or int(str(self.ending().code)))


def _stacks() -> str:
    """Returns the stacks of all threads, through memory: faulthandler would hold the GIL while a pipe is full."""
    with os.fdopen(os.memfd_create("stacks"), "w+", errors="replace") as memory:
        faulthandler.dump_traceback(memory)
        memory.seek(0)
        return memory.read()


def _for_seconds(seconds: float, act: Callable[[], object]) -> None:
    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    thread.join(seconds)
