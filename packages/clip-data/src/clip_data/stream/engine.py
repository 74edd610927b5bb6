"""Makes batches in order, in this process or in worker processes, which may die at any moment."""

import logging
import os
import pickle
import socket
import struct
import subprocess
import time
import weakref
from collections import deque
from collections.abc import Iterable
from itertools import pairwise
from multiprocessing.connection import Connection

import numpy as np

from clip_data.errors import ClipDataError
from clip_data.stream.batches import BatchMaker, Plan, Slice
from clip_data.stream.ring import Ring, anonymous_file
from clip_data.stream.worker import start, state_of

PREFETCH = 3  # batches being made while one is in use
LEASES = 2  # batches that a consumer may hold without a copy: the one in use and the one before
POLL_S = 1.0  # between looks at the clock while waiting for a worker
STOPPED_S = 5.0  # until a worker that someone has stopped is replaced
MESSAGE_S = 10  # from the first to the last byte of an answer, and from the kill of a worker to its end
RESTARTS = 3  # of a worker, in a row, without a single finished batch in between

log = logging.getLogger(__name__)
Made = tuple[np.ndarray, np.ndarray, list[tuple[int, Slice]]]
"""images, texts, and of each slice of the batch the index of its first sample with its result"""


class LocalEngine:
    """Makes batches in this process, on request."""

    restarts = 0

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.maker = BatchMaker(plan)

    def batch(self, number: int, size: int) -> Made:
        plan = self.plan
        images = np.empty((size, 3, *plan.preprocess.size), np.uint8)
        texts = np.empty((size, plan.context), np.int64)
        return images, texts, [(0, self.maker.make(number, 0, size, images, texts))]

    def close(self) -> None:
        self.maker.close()


class Worker:
    """A process that makes the same slice of every batch, with the tasks that it has not answered."""

    def __init__(self, ring: Ring, plan: int, low: int, high: int) -> None:
        """`plan` is the descriptor of a file with (Plan, slots), too large for the pipe to a stopped worker."""
        self.ring, self.plan, self.low, self.high = ring, plan, low, high
        self.tasks: deque[bytes] = deque()
        self.failures = 0
        self._start()

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", MESSAGE_S, 0))
        with theirs:
            self.process = start(theirs.fileno(), self.ring.file, self.plan, self.low, self.high)
        self.connection = Connection(ours.detach())

    def submit(self, batch: int, slot: int) -> None:
        self.tasks.append(pickle.dumps((batch, slot)))
        self._send([self.tasks[-1]])

    def _send(self, messages: list[bytes]) -> None:
        try:
            for message in messages:
                self.connection.send_bytes(message)
        except ConnectionError:
            log.debug("worker %d is gone; its tasks are sent again when the next batch is due", self.process.pid)

    def receive(self, timeout: float) -> tuple[Slice, int]:
        """Returns the answer to the oldest task, and how often the worker was restarted for it."""
        restarts, asked = 0, time.monotonic()
        while True:
            if not self.connection.poll(POLL_S):
                state, waited = state_of(self.process.pid), time.monotonic() - asked
                if waited < (STOPPED_S if state == "stopped" else timeout / (RESTARTS + 1)):
                    continue
                how = f"gave no batch within {waited:.0f} s and was {state}"
            else:
                try:
                    kind, answer = self.connection.recv()
                except (EOFError, OSError):  # an OSError when it died, or was stopped, in the middle of a message
                    how = ""
                else:
                    if kind == "error":
                        raise ClipDataError(answer)
                    if kind == "bug":
                        raise RuntimeError(f"a worker process of the stream failed:\n{answer}")
                    self.tasks.popleft()
                    self.failures = 0
                    return answer, restarts
            self._revive(how)
            restarts, asked = restarts + 1, time.monotonic()

    def _revive(self, how: str) -> None:
        process = self.process
        self.stop()
        self.failures += 1
        how = how or f"died (exit code {process.returncode})"
        if self.failures > RESTARTS:
            raise ClipDataError(
                f"a worker process of the stream failed {self.failures} times in a row; the last one, process "
                f"{process.pid}, {how}: if memory is short, use fewer workers; if storage is slow, allow more time"
            )
        log.warning("a worker process of the stream, process %d, %s; starting it again", process.pid, how)
        self._start()
        self._send(list(self.tasks))

    def stop(self) -> None:
        """Kills the process; it holds nothing that must be saved."""
        self.connection.close()
        self.process.kill()
        try:
            self.process.wait(MESSAGE_S)
        except subprocess.TimeoutExpired:
            pid = self.process.pid
            log.warning("process %d of the stream was killed but does not end: it is %s", pid, state_of(pid))


class WorkerEngine:
    """Makes batches ahead of time in worker processes."""

    def __init__(self, plan: Plan, workers: int, numbers: Iterable[int], *, timeout: float) -> None:
        """`numbers`: of the batches, in the order in which they will be asked for; `timeout`: seconds of a batch."""
        self.timeout = timeout
        self.slots = PREFETCH + LEASES
        self.ring = Ring(plan, self.slots)
        self.numbers = iter(numbers)
        self.pending: deque[tuple[int, int]] = deque()  # (number, slot)
        self.restarts = 0
        task = pickle.dumps((plan, self.slots))
        file = anonymous_file(len(task))
        weakref.finalize(self, os.close, file)
        os.pwrite(file, task, 0)
        bounds = [plan.size * index // workers for index in range(workers + 1)]
        self.workers: list[Worker] = []
        self._finalizer = weakref.finalize(self, _stop_all, self.workers)
        for low, high in pairwise(bounds):
            self.workers.append(Worker(self.ring, file, low, high))

    def batch(self, number: int, size: int) -> Made:
        """Returns the next batch, whose number this must be."""
        self._submit()
        assert number == self.pending[0][0]
        slices = []
        for worker in self.workers:
            answer, restarts = worker.receive(self.timeout)
            self.restarts += restarts
            slices.append((worker.low, answer))
        _, slot = self.pending.popleft()
        images, texts = self.ring.arrays(slot, self.ring.free.append)
        if self.slots - len(self.ring.free) - len(self.pending) > LEASES:
            images, texts = images.copy(), texts.copy()
        self._submit()
        return images[:size], texts[:size], slices

    def _submit(self) -> None:
        while self.ring.free and len(self.pending) < PREFETCH and (number := next(self.numbers, None)) is not None:
            slot = self.ring.free.popleft()
            self.pending.append((number, slot))
            for worker in self.workers:
                worker.submit(number, slot)

    def close(self) -> None:
        self._finalizer()


def _stop_all(workers: list[Worker]) -> None:
    while workers:
        workers.pop().stop()
