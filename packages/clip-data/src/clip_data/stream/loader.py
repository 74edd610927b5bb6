"""The two ways to read a manifest: endlessly in the training order, and once in plain order."""

import itertools
import logging
import pickle
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Self

import numpy as np

from clip_data.errors import ClipDataError
from clip_data.stream.batches import Plan, Tokenizer, tokens
from clip_data.stream.engine import LocalEngine, Made, WorkerEngine
from clip_data.stream.manifest import Manifest
from clip_data.stream.order import batching
from clip_data.stream.preprocess import parse_preprocess
from clip_data.stream.read import SourceReader
from clip_data.stream.worker import IMPORTABLE

TIMEOUT_S = 600.0
MAX_REPORTED = 1000  # uids of corrupt samples kept for reports; the count is exact
Batch = dict[str, Any]
log = logging.getLogger(__name__)


class _Reader:
    """What both ways to read share: the engine of a plan, its batches, and the counts."""

    def __init__(self, plan: Plan, workers: int, timeout: float) -> None:
        self._plan = plan
        self._workers = min(_natural("workers", workers), plan.size)
        self._timeout = timeout
        self._reset()

    def _reset(self) -> None:
        self._counts = {"batches": 0, "samples": 0, "corrupt": 0, "truncated": 0, "bytes_read": 0, "restarts": 0}
        self._corrupt: deque[str] = deque(maxlen=MAX_REPORTED)

    @property
    def corrupt_uids(self) -> list[str]:
        """The latest corrupt samples, at most a thousand; for `read_once` those of the latest pass."""
        return list(self._corrupt)

    def _start(self, numbers: Iterable[int]) -> LocalEngine | WorkerEngine:
        if not self._workers:
            return LocalEngine(self._plan)
        return WorkerEngine(self._plan, self._workers, numbers, timeout=self._timeout)

    def _batch(self, made: Made) -> Batch:
        """Counts a batch and returns it, without the entries that no sample has filled."""
        images, texts, slices = made
        parts = [part for _, part in slices]
        self._counts["batches"] += 1
        self._counts["samples"] += sum(len(part.uids) for part in parts)
        self._counts["truncated"] += sum(part.truncated for part in parts)
        self._counts["bytes_read"] += sum(part.bytes_read for part in parts)
        for uid, reason in (lost for part in parts for lost in part.corrupt):
            if self._counts["corrupt"] < MAX_REPORTED:
                log.warning("corrupt sample %s: %s", uid, reason)
            self._counts["corrupt"] += 1
            self._corrupt.append(uid)
        uids = [uid for part in parts for uid in part.uids]
        if len(uids) < len(images):
            filled = np.concatenate([np.arange(low, low + len(part.uids)) for low, part in slices])
            images, texts = images[filled], texts[filled]
        captions = [caption for part in parts for caption in part.captions]
        rows = [row for part in parts for row in part.columns]
        return {
            "image": images,
            "text": captions if self._plan.tokenizer is None else texts,
            "uid": uids,
            "ordinal": np.array([ordinal for part in parts for ordinal in part.ordinals], np.int64),
            "epoch": np.array([epoch for part in parts for epoch in part.epochs], np.int64),
            **{name: [row[index] for row in rows] for index, name in enumerate(self._plan.columns)},
        }


class SampleStream(_Reader):
    """The training stream of one rank: an endless iterator of batches, whose only state is the next step.

    A batch is {"image": uint8 ndarray [B_local, 3, H, W], "text": int64 ndarray [B_local, context] (without a
    tokenizer the captions, a list of str), "uid": list of 32 hex digits, "ordinal": int64 ndarray [B_local], the
    number of each sample among those of the manifest, "epoch": int64 ndarray [B_local], the pass over its source, from
    0}, and a list for each requested column. Together, in rank order,
    the ranks' batches are a pure function of (manifest, preprocess, tokenizer, seed, step, global batch size,
    canonical streams).

    Arrays may be in memory shared with the workers. They stay valid as long as anything refers to them.
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
        columns: Sequence[str] = (),
        timeout: float = TIMEOUT_S,
    ) -> None:
        """`tokenizer` maps a list of n captions to an integer ndarray [n, context]; with workers it must pickle.

        `canonical_streams` (0: the greatest common divisor of 64 and the batch) limits the world sizes that a run can
        change to. `columns` names columns of the sidecar, or of scorers as "set.column". `workers=0` makes the batches
        in this process. A batch may take `timeout` seconds; a worker that gives none for a quarter of it is restarted.
        Raises ClipDataError for invalid values.
        """
        streams = batching(manifest.samples, global_batch_size, canonical_streams, rank, world_size)
        size = global_batch_size // world_size
        plan = Plan(
            manifest=manifest,
            preprocess=parse_preprocess(preprocess),
            tokenizer=tokenizer,
            context=_context(tokenizer, workers),
            first=rank * size,
            size=size,
            batch=global_batch_size,
            seed=seed,
            streams=streams,
            columns=_columns(manifest, columns),
        )
        super().__init__(plan, workers, timeout)
        self._step = _natural("start_step", start_step)
        self._engine: LocalEngine | WorkerEngine | None = None
        self._wait_s = 0.0
        self._closed = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        if self._closed:
            raise ClipDataError("the stream is closed: make a new one")
        started = time.perf_counter()
        self._engine = self._engine or self._start(itertools.count(self._step))
        try:
            made = self._engine.batch(self._step, self._plan.size)
        except BaseException:
            self._stop()  # answers that the workers have sent since do not fit the step
            raise
        self._step += 1
        self._wait_s += time.perf_counter() - started
        return self._batch(made)

    @property
    def stats(self) -> dict[str, int | float]:
        """batches, samples, corrupt (and replaced), truncated, bytes_read, worker restarts, and seconds of wait_s.

        `truncated` are captions that were cut, if the tokenizer tells (`batches.CountsTruncated`); bytes of payloads.
        """
        restarts = self._counts["restarts"] + (self._engine.restarts if self._engine else 0)
        return {**self._counts, "restarts": restarts, "wait_s": self._wait_s}

    def state_dict(self) -> dict[str, Any]:
        """Returns the next step and what the order of the samples depends on."""
        return {"step": self._step, **self._identity()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues at the step of a state. Raises ClipDataError if the state is of another order of samples."""
        for name, value in self._identity().items():
            if state.get(name) != value:
                found = f"{name} = {state.get(name)!r}, this stream has {value!r}"
                raise ClipDataError(f"the stream's state has {found}: use the same samples, seed and batch size")
        self._stop()
        self._step = _natural("step", state.get("step"))

    def close(self) -> None:
        """Stops the workers and closes files. Batches that were returned stay valid."""
        self._stop()
        self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
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
            self._counts["restarts"] += self._engine.restarts
            self._engine = None


class OnceReader(_Reader):
    """Every good sample of a manifest once, in the order (source, unit, row); can be iterated again.

    Batches are those of SampleStream, with a list for each requested column. Batch k holds the good ones of samples
    [k·B, (k+1)·B) of the manifest, so it is short where samples are corrupt. The ranks take turns: rank r of W reads
    batches r, r + W, r + 2W, ….
    """

    def __init__(self, plan: Plan, workers: int, timeout: float, *, rank: int, world_size: int, keep_workers: bool):
        super().__init__(plan, workers, timeout)
        self._keep = keep_workers
        self._engine: LocalEngine | WorkerEngine | None = None
        self._restarts = 0
        self.numbers = range(rank, -(-plan.manifest.samples // plan.size), world_size)
        """the batches of this rank"""

    def __iter__(self) -> Iterator[Batch]:
        return (batch for _, batch in self.numbered() if batch["uid"])

    def numbered(self) -> Iterator[tuple[int, Batch]]:
        """Yields the batches of this rank with their numbers, also those without a good sample."""
        size, samples = self._plan.size, self._plan.manifest.samples
        self._reset()
        if self._engine is None and self.numbers:
            # Workers that are kept make the first batches of the next pass while they wait for it.
            self._engine = self._start(itertools.cycle(self.numbers) if self._keep else self.numbers)
        finished = False
        try:
            for number in self.numbers:
                assert self._engine is not None
                yield number, self._batch(self._engine.batch(number, min(size, samples - number * size)))
            finished = True
        finally:
            if not (finished and self._keep):
                self.close()

    @property
    def stats(self) -> dict[str, int | float]:
        """batches, samples, corrupt (and left out), truncated captions and bytes_read of this rank's latest pass.

        `restarts` of workers are those since the reader was made.
        """
        return {**self._counts, "restarts": self._restarts + (self._engine.restarts if self._engine else 0)}

    def close(self) -> None:
        """Stops the workers and closes files. Batches that were returned stay valid; a new pass starts them again."""
        if self._engine is not None:
            self._engine.close()
            self._restarts += self._engine.restarts
            self._engine = None


def read_once(
    manifest: Manifest,
    *,
    preprocess: Mapping[str, Any],
    tokenizer: Tokenizer | None,
    batch_size: int = 256,
    workers: int = 0,
    columns: Sequence[str] = (),
    rank: int = 0,
    world_size: int = 1,
    keep_workers: bool = False,
    timeout: float = TIMEOUT_S,
) -> OnceReader:
    """Returns a reader of every sample, for evaluation. Corrupt samples are left out, counted and reported.

    `columns`, which each batch holds as lists, and `timeout` are those of SampleStream. Of several ranks each reads its
    share of the batches. `keep_workers` keeps the worker processes from one pass to the next, until `close`. Raises
    ClipDataError for invalid values.
    """
    if batch_size < 1:
        raise ClipDataError(f"batch_size = {batch_size} must be positive")
    if not 0 <= rank < world_size:
        raise ClipDataError(f"rank = {rank} must be at least 0 and below world_size = {world_size}")
    plan = Plan(
        manifest=manifest,
        preprocess=parse_preprocess(preprocess),
        tokenizer=tokenizer,
        context=_context(tokenizer, workers),
        size=min(batch_size, manifest.samples),
        batch=min(batch_size, manifest.samples),
        columns=_columns(manifest, columns),
    )
    return OnceReader(plan, workers, timeout, rank=rank, world_size=world_size, keep_workers=keep_workers)


def _columns(manifest: Manifest, columns: Sequence[str]) -> tuple[str, ...]:
    taken = {"image", "text", "uid", "ordinal", "epoch"} & set(columns)
    if taken:
        raise ClipDataError(f"columns: {', '.join(sorted(taken))} is always part of a batch")
    for part in manifest.parts if columns else ():
        SourceReader(part, columns).check()
    return tuple(columns)


def _context(tokenizer: Tokenizer | None, workers: int) -> int:
    if tokenizer is None:
        return 0
    if workers:
        try:
            pickle.dumps(tokenizer)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise ClipDataError(f"the tokenizer cannot be sent to worker processes ({error}): {IMPORTABLE}") from error
    return int(tokens(tokenizer, ["a"]).shape[1])


def _natural(name: str, value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ClipDataError(f"{name} = {value!r} must be an integer of at least 0")
    return value
