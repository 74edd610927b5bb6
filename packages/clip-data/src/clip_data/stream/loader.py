"""The two ways to read a manifest: for ever in the training order, and once in plain order."""

from __future__ import annotations

import logging
import pickle
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

import numpy as np

from clip_data.errors import ClipDataError
from clip_data.stream.batches import Plan, Slice, Tokenizer, tokens
from clip_data.stream.engine import LocalEngine, Made, WorkerEngine
from clip_data.stream.manifest import Manifest
from clip_data.stream.order import batching
from clip_data.stream.preprocess import parse_preprocess

TIMEOUT_S = 600.0
MAX_REPORTED = 1000  # uids of corrupt samples kept for reports; the count is exact
Batch = dict[str, Any]
log = logging.getLogger(__name__)


class _Account:
    """What a stream has met so far."""

    def __init__(self) -> None:
        self.counts = {"batches": 0, "samples": 0, "corrupt": 0, "bytes_read": 0, "restarts": 0}
        self.wait_s = 0.0
        self.corrupt_uids: deque[str] = deque(maxlen=MAX_REPORTED)

    def add(self, slices: Sequence[tuple[int, Slice]]) -> None:
        self.counts["batches"] += 1
        for _, part in slices:
            self.counts["samples"] += len(part.uids)
            self.counts["bytes_read"] += part.bytes_read
            for uid, reason in part.corrupt:
                if self.counts["corrupt"] < MAX_REPORTED:
                    log.warning("corrupt sample %s: %s", uid, reason)
                self.counts["corrupt"] += 1
                self.corrupt_uids.append(uid)


class SampleStream:
    """The training stream of one rank: an endless iterator of batches, whose only state is the next step.

    A batch is {"image": uint8 ndarray [B_local, 3, H, W], "text": int64 ndarray [B_local, context] (the captions, a
    list of str, without a tokenizer), "uid": list of 32 hex digits}. Together, in rank order, the ranks' batches are
    a pure function of (manifest, preprocess, tokenizer, seed, step, global batch size, canonical streams).

    Arrays may lie in memory shared with the workers. They stay valid as long as anything refers to them.
    """

    def __init__(
        self,
        manifest: Manifest,
        *,
        preprocess: Mapping[str, Any],
        tokenizer: Tokenizer | None,
        global_batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 2,
        start_step: int = 0,
        canonical_streams: int = 0,
        timeout: float = TIMEOUT_S,
    ) -> None:
        """`tokenizer` maps a list of n captions to an integer ndarray [n, context]; with workers it must pickle.

        `canonical_streams` (0 = the greatest divisor that 64 and the batch share) bounds the world sizes a run can
        move to. `workers=0` makes the batches in this process. Workers may take `timeout` seconds for a batch; one
        that gives none for a quarter of it is started again. ClipDataError for values that do not fit.
        """
        streams = batching(manifest.samples, global_batch_size, canonical_streams, rank, world_size)
        size = global_batch_size // world_size
        self._plan = Plan(
            manifest=manifest,
            preprocess=parse_preprocess(preprocess),
            tokenizer=tokenizer,
            context=_context(tokenizer, workers),
            first=rank * size,
            size=size,
            batch=global_batch_size,
            seed=seed,
            streams=streams,
            columns=(),
        )
        self._workers = min(_natural("workers", workers), size)
        self._timeout = timeout
        self._step = _natural("start_step", start_step)
        self._engine: LocalEngine | WorkerEngine | None = None
        self._account = _Account()
        self._closed = False

    def __iter__(self) -> SampleStream:
        return self

    def __next__(self) -> Batch:
        if self._closed:
            raise ClipDataError("the stream is closed: make a new one")
        started = time.perf_counter()
        if self._engine is None:
            self._engine = (
                WorkerEngine(self._plan, self._workers, self._step, timeout=self._timeout)
                if self._workers
                else LocalEngine(self._plan)
            )
        try:
            images, texts, slices = self._engine.batch(self._step, self._plan.size)
        except BaseException:
            self._stop()  # what the workers have sent meanwhile no longer fits the step
            raise
        self._step += 1
        self._account.add(slices)
        self._account.wait_s += time.perf_counter() - started
        captions = [caption for _, part in slices for caption in part.captions]
        uids = [uid for _, part in slices for uid in part.uids]
        return {"image": images, "text": captions if self._plan.tokenizer is None else texts, "uid": uids}

    @property
    def stats(self) -> dict[str, int | float]:
        """batches, samples, corrupt (and replaced), payload bytes_read, worker restarts, and seconds of wait_s."""
        restarts = self._account.counts["restarts"] + (self._engine.restarts if self._engine else 0)
        return {**self._account.counts, "restarts": restarts, "wait_s": self._account.wait_s}

    @property
    def corrupt_uids(self) -> list[str]:
        """The latest corrupt samples, at most a thousand."""
        return list(self._account.corrupt_uids)

    def state_dict(self) -> dict[str, Any]:
        """The next step, and what it is a step of."""
        return {"step": self._step, **self._identity()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues at the state's step; ClipDataError when the state belongs to another order of samples."""
        for name, value in self._identity().items():
            if state.get(name) != value:
                raise ClipDataError(
                    f"the stream's state has {name} = {state.get(name)!r}, this stream has {value!r}: "
                    "it can only continue on the same samples, seed and batch size"
                )
        self._stop()
        self._step = _natural("step", state.get("step"))

    def close(self) -> None:
        """Stops the workers and closes files. Batches handed out stay valid."""
        self._stop()
        self._closed = True

    def __enter__(self) -> SampleStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _identity(self) -> dict[str, Any]:
        plan = self._plan
        return {
            "manifest": plan.manifest.fingerprint,
            "seed": plan.seed,
            "global_batch_size": plan.batch,
            "canonical_streams": plan.streams,
        }

    def _stop(self) -> None:
        if self._engine is not None:
            self._engine.close()
            self._account.counts["restarts"] += self._engine.restarts
            self._engine = None


class OnceReader:
    """Every good sample of a manifest once, in the order (source, unit, row); can be iterated again.

    Batches are those of SampleStream, with a list for each asked column; only the last may be short.
    """

    def __init__(self, plan: Plan, workers: int, timeout: float) -> None:
        self._plan = plan
        self._timeout = timeout
        self._workers = min(workers, plan.size)
        self._account = _Account()

    def __iter__(self) -> Iterator[Batch]:
        plan, samples = self._plan, self._plan.manifest.samples
        batches = -(-samples // plan.size)
        self._account = _Account()
        engine = (
            WorkerEngine(plan, self._workers, 0, batches, timeout=self._timeout) if self._workers else LocalEngine(plan)
        )
        held: Batch | None = None
        try:
            for number in range(batches):
                made = engine.batch(number, min(plan.size, samples - number * plan.size))
                self._account.add(made[2])
                held = _joined(held, self._batch(made))
                if len(held["uid"]) >= plan.size:
                    yield _cut(held, 0, plan.size)
                    rest = _cut(held, plan.size, len(held["uid"]))
                    held = rest if rest["uid"] else None
            if held is not None and held["uid"]:
                yield held
        finally:
            engine.close()

    @property
    def stats(self) -> dict[str, int | float]:
        """batches, samples, corrupt (and skipped) and payload bytes_read of the latest pass."""
        return dict(self._account.counts)

    @property
    def corrupt_uids(self) -> list[str]:
        """The corrupt samples of the latest pass, at most a thousand."""
        return list(self._account.corrupt_uids)

    def _batch(self, made: Made) -> Batch:
        images, texts, slices = made
        if any(part.corrupt for _, part in slices):
            filled = np.concatenate([np.arange(low, low + len(part.uids)) for low, part in slices])
            images, texts = images[filled], texts[filled]
        captions = [caption for _, part in slices for caption in part.captions]
        rows = [row for _, part in slices for row in part.columns]
        return {
            "image": images,
            "text": captions if self._plan.tokenizer is None else texts,
            "uid": [uid for _, part in slices for uid in part.uids],
            **{name: [row[index] for row in rows] for index, name in enumerate(self._plan.columns)},
        }


def read_once(
    manifest: Manifest,
    *,
    preprocess: Mapping[str, Any],
    tokenizer: Tokenizer | None,
    batch_size: int = 256,
    workers: int = 0,
    columns: Sequence[str] = (),
    timeout: float = TIMEOUT_S,
) -> OnceReader:
    """Reads every sample exactly once, for evaluation. Corrupt samples are left out, counted and reported.

    `columns` names columns of the sidecar that each batch carries as lists; `timeout` is that of SampleStream. Raises
    ClipDataError for bad values.
    """
    if batch_size < 1:
        raise ClipDataError(f"batch_size = {batch_size} must be positive")
    taken = {"image", "text", "uid"} & set(columns)
    if taken:
        raise ClipDataError(f"columns: {', '.join(sorted(taken))} is always part of a batch")
    plan = Plan(
        manifest=manifest,
        preprocess=parse_preprocess(preprocess),
        tokenizer=tokenizer,
        context=_context(tokenizer, workers),
        first=0,
        size=min(batch_size, manifest.samples),
        batch=min(batch_size, manifest.samples),
        seed=0,
        streams=0,
        columns=tuple(columns),
    )
    return OnceReader(plan, _natural("workers", workers), timeout)


def _context(tokenizer: Tokenizer | None, workers: int) -> int:
    if tokenizer is None:
        return 0
    if workers:
        try:
            pickle.dumps(tokenizer)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise ClipDataError(
                f"the tokenizer cannot travel to worker processes ({error}): "
                "define it in a module that can be imported, or use workers=0"
            ) from error
    return tokens(tokenizer, ["a"]).shape[1]


def _natural(name: str, value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ClipDataError(f"{name} = {value!r} must be an integer of at least 0")
    return value


def _joined(held: Batch | None, batch: Batch) -> Batch:
    if held is None:
        return batch
    return {name: _plus(value, batch[name]) for name, value in held.items()}


def _plus(left: Any, right: Any) -> Any:
    return np.concatenate([left, right]) if isinstance(left, np.ndarray) else left + right


def _cut(batch: Batch, low: int, high: int) -> Batch:
    if low == 0 and high == len(batch["uid"]):
        return batch
    return {name: value[low:high] for name, value in batch.items()}
