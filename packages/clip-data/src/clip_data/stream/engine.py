"""Batches in order: made in this process, or by worker processes that may die at any moment."""

from __future__ import annotations

import logging
import pickle
import socket
import weakref
from collections import deque
from itertools import pairwise
from multiprocessing.connection import Connection

import numpy as np

from clip_data.errors import ClipDataError
from clip_data.stream.batches import BatchMaker, Plan, Slice
from clip_data.stream.ring import Ring
from clip_data.stream.worker import start

PREFETCH = 3  # batches being made while one is in use
LEASES = 2  # batches that a consumer may hold without a copy: the one in use and the one it is about to drop
RESTARTS = 3  # of a worker, in a row, without a single finished batch in between

log = logging.getLogger(__name__)
Made = tuple[np.ndarray, np.ndarray, list[tuple[int, Slice]]]
"""images, texts, and for each slice of the batch its first sample's index with what became of it"""


class LocalEngine:
    """Makes batches where it is asked for them."""

    restarts = 0

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.maker = BatchMaker(plan)

    def batch(self, number: int, size: int) -> Made:
        plan = self.plan
        images = np.empty((size, 3, plan.treatment.height, plan.treatment.width), np.uint8)
        texts = np.empty((size, plan.context), np.int64)
        return images, texts, [(0, self.maker.make(number, 0, size, images, texts))]

    def close(self) -> None:
        self.maker.close()


class Worker:
    """A process that makes the same slice of every batch, and the tasks it has not answered."""

    def __init__(self, plan: Plan, ring: Ring, slots: int, low: int, high: int) -> None:
        self.ring, self.low = ring, low
        self.task = pickle.dumps((plan, slots, low, high))
        self.tasks: deque[bytes] = deque()
        self.failures = 0
        self._start()

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self.process = start(theirs.fileno(), self.ring.file)
        self.connection = Connection(ours.detach())
        self.greeted = False

    def submit(self, batch: int, slot: int) -> None:
        self.tasks.append(pickle.dumps((batch, slot)))
        if self.greeted:
            self._send([self.tasks[-1]])
        else:
            # Sent with the first task rather than at the start, so that all workers come up side by side.
            self.greeted = True
            self._send([self.task, *self.tasks])

    def _send(self, messages: list[bytes]) -> None:
        try:
            for message in messages:
                self.connection.send_bytes(message)
        except ConnectionError:
            log.debug("worker %d is gone; its tasks are sent again when the next batch is due", self.process.pid)

    def receive(self) -> tuple[Slice, int]:
        """The answer to the oldest task, and how often the worker had to be started again for it."""
        restarts = 0
        while True:
            try:
                kind, answer = self.connection.recv()
            except (EOFError, OSError):  # an OSError when it died in the middle of a message
                self._revive()
                restarts += 1
                continue
            if kind == "error":
                raise ClipDataError(answer)
            if kind == "bug":
                raise RuntimeError(f"a worker process of the stream failed:\n{answer}")
            self.tasks.popleft()
            self.failures = 0
            return answer, restarts

    def _revive(self) -> None:
        self.stop()
        self.failures += 1
        code = self.process.returncode
        if self.failures > RESTARTS:
            raise ClipDataError(
                f"a worker process of the stream died {self.failures} times in a row (last exit code {code}): "
                "is memory short? Use fewer workers or a smaller batch"
            )
        log.warning("a worker process of the stream died (exit code %s); starting it again", code)
        self._start()
        self.greeted = True
        self._send([self.task, *self.tasks])

    def stop(self) -> None:
        """Workers hold nothing worth saving: they are killed."""
        self.connection.close()
        self.process.kill()
        self.process.wait()


class WorkerEngine:
    """Makes batches ahead of time in worker processes, from `first` on."""

    def __init__(self, plan: Plan, workers: int, first: int, stop: int | None = None) -> None:
        slots = PREFETCH + LEASES
        self.plan = plan
        self.ring = Ring(plan, slots)
        self.slots = slots
        self.number, self.stop = first, stop
        self.pending: deque[int] = deque()
        self.restarts = 0
        bounds = [plan.size * index // workers for index in range(workers + 1)]
        self.workers: list[Worker] = []
        self._finalizer = weakref.finalize(self, _stop_all, self.workers)
        for low, high in pairwise(bounds):
            self.workers.append(Worker(plan, self.ring, slots, low, high))

    def batch(self, number: int, size: int) -> Made:
        """Batches must be asked for one after the other."""
        self._submit()
        assert number == self.number - len(self.pending)
        slices = []
        for worker in self.workers:
            answer, restarts = worker.receive()
            self.restarts += restarts
            slices.append((worker.low, answer))
        slot = self.pending.popleft()
        images, texts = self.ring.arrays(slot, self.ring.free.append)
        if self.slots - len(self.ring.free) - len(self.pending) > LEASES:
            images, texts = images.copy(), texts.copy()
        self._submit()
        return images[:size], texts[:size], slices

    def _submit(self) -> None:
        while self.ring.free and len(self.pending) < PREFETCH and self.number != self.stop:
            slot = self.ring.free.popleft()
            self.pending.append(slot)
            for worker in self.workers:
                worker.submit(self.number, slot)
            self.number += 1

    def close(self) -> None:
        self._finalizer()


def _stop_all(workers: list[Worker]) -> None:
    while workers:
        workers.pop().stop()
