"""A batch as a pure function of its number. Worker processes and the in-process loader both run this."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from typing import Any, Protocol, runtime_checkable

import numpy as np

from clip_data.errors import ClipDataError
from clip_data.stream.manifest import Manifest
from clip_data.stream.order import GlobalOrder, PlainOrder, SourceOrder
from clip_data.stream.preprocess import CorruptSample, Preprocess
from clip_data.stream.read import Sample, SourceReader, Window

Tokenizer = Callable[[list[str]], np.ndarray]
SEARCH = 1000  # neighbours tried for a corrupt sample; if all are corrupt, the shard is damaged
CHUNK = 256  # payloads held at a time


@runtime_checkable
class CountsTruncated(Protocol):
    """A tokenizer that can tell which captions it cuts."""

    def truncated(self, captions: Sequence[str], tokens: np.ndarray) -> Sequence[int]:
        """Returns the indices of the captions that were cut to give `tokens`, int64 [n, context]."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that a rank's batches depend on. It is sent to the worker processes."""

    manifest: Manifest
    preprocess: Preprocess
    tokenizer: Tokenizer | None
    context: int
    """tokens of a text; 0 without a tokenizer"""
    first: int = 0
    """index of the rank's first sample in a global batch"""
    size: int
    """samples of the rank's batches"""
    batch: int
    """samples of a global batch"""
    seed: int = 0
    streams: int = 0
    """canonical streams; 0: every sample once, in plain order, without corrupt ones"""
    columns: tuple[str, ...] = ()
    """columns of the sidecar, or of scorers as "set.column", that a batch holds as lists"""


@dataclass(kw_only=True)
class Slice:
    """One slice of a batch, without its pixels and tokens. Small enough for a pipe."""

    uids: list[str] = field(default_factory=list)
    ordinals: list[int] = field(default_factory=list)
    epochs: list[int] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    """only without a tokenizer"""
    columns: list[tuple[Any, ...]] = field(default_factory=list)
    corrupt: list[tuple[str, str]] = field(default_factory=list)
    """uid and reason"""
    truncated: int = 0
    """captions that the tokenizer cut"""
    bytes_read: int = 0


class BatchMaker:
    """Makes slices of a plan's batches, in any order."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        parts = plan.manifest.parts
        self.once = plan.streams == 0
        streams = plan.streams or 1
        self.orders = [
            SourceOrder(
                [unit.name for unit in part.units],
                part.counts,
                seed=plan.seed,
                source=index,
                streams=streams,
                shuffle=not self.once,
            )
            for index, part in enumerate(parts)
        ]
        weights = [part.source.weight for part in parts]
        order = (
            PlainOrder(self.orders, plan.batch) if self.once else GlobalOrder(self.orders, weights, plan.batch, streams)
        )
        self.place = order.place
        firsts = np.cumsum([0, *(part.samples for part in parts)]).tolist()
        self.readers = [SourceReader(part, plan.columns, first) for part, first in zip(parts, firsts, strict=False)]
        # One window is in use per stream of this rank and source; replacements need a few more.
        touched = -(-plan.size * streams // plan.batch) * len(parts)
        self._window = lru_cache(maxsize=touched + 8)(self._read_window)

    def make(self, batch: int, low: int, high: int, images: np.ndarray, texts: np.ndarray | None) -> Slice:
        """Fills `images` (uint8 [n, 3, H, W]) and `texts` (int64 [n, context]) with samples [low, high) of a batch.

        A corrupt sample is replaced by the next good one of its epoch. A plan without streams leaves it out, and only
        the first len(uids) entries are filled. Raises ClipDataError if no replacement is found.
        """
        if self.once:
            high = min(high, self.plan.manifest.samples - batch * self.plan.batch)
        done = Slice()
        before = sum(reader.bytes_read for reader in self.readers)
        captions: list[str] = []
        for start in range(low, high, CHUNK):
            indices = range(start, min(start + CHUNK, high))
            places = [self.place(batch, self.plan.first + index) for index in indices]
            samples = [self._sample(*place) for place in places]
            payloads = self._payloads(places, samples)
            for index, (place, sample) in enumerate(zip(places, samples, strict=True)):
                payload, payloads[index] = payloads[index], b""
                pixels: np.ndarray | None = None
                try:
                    pixels = self._decode(place, sample, payload)
                except CorruptSample as error:
                    done.corrupt.append((sample.uid, str(error)))
                    if not self.once:
                        sample, pixels = self._replacement(place, sample)
                if pixels is not None:
                    images[len(captions)] = pixels.transpose(2, 0, 1)
                    captions.append(sample.caption)
                    done.uids.append(sample.uid)
                    done.ordinals.append(sample.ordinal)
                    done.epochs.append(place[2])
                    done.columns.append(sample.columns)
        if self.plan.tokenizer is None:
            done.captions = captions
        elif captions:
            assert texts is not None
            found = tokens(self.plan.tokenizer, captions, self.plan.context)
            texts[: len(captions)] = found
            if isinstance(self.plan.tokenizer, CountsTruncated):
                done.truncated = len(self.plan.tokenizer.truncated(captions, found))
        done.bytes_read = sum(reader.bytes_read for reader in self.readers) - before
        return done

    def close(self) -> None:
        for reader in self.readers:
            reader.close()

    def _sample(self, source: int, stream: int, epoch: int, offset: int) -> Sample:
        window, place = self.orders[source].window_of(stream, offset)
        return self._window(source, stream, epoch, window).sample(place)

    def _read_window(self, source: int, stream: int, epoch: int, window: int) -> Window:
        return self.readers[source].window(*self.orders[source].window(stream, epoch, window))

    def _payloads(self, places: Sequence[tuple[int, int, int, int]], samples: Sequence[Sample]) -> list[bytes]:
        found = [b""] * len(samples)
        for source, reader in enumerate(self.readers):
            mine = [index for index, place in enumerate(places) if place[0] == source]
            for index, payload in zip(mine, reader.payloads([samples[index] for index in mine]), strict=True):
                found[index] = payload
        return found

    def _decode(self, place: tuple[int, int, int, int], sample: Sample, payload: bytes) -> np.ndarray:
        if sample.length <= 0 or len(payload) < sample.length:
            raise CorruptSample(f"{len(payload)} of {sample.length} bytes at {sample.offset} of {sample.shard}")
        return self.plan.preprocess.decode(payload, self.plan.seed, place[2], sample.uid)

    def _replacement(self, place: tuple[int, int, int, int], lost: Sample) -> tuple[Sample, np.ndarray]:
        source, stream, epoch, offset = place
        for other, there in islice(self.orders[source].successors(stream, epoch, offset), SEARCH):
            sample = self._sample(source, other, epoch, there)
            payload = self.readers[source].payloads([sample])[0]
            try:
                return sample, self._decode((source, other, epoch, there), sample, payload)
            except CorruptSample:
                continue  # counted when the stream itself reaches it
        raise ClipDataError(f"no readable sample near {lost.uid} ({lost.shard}): check it with 'clip-data verify'")


def tokens(tokenizer: Tokenizer, captions: list[str], context: int = 0) -> np.ndarray:
    """Returns the tokens of captions, int64 [n, context]. Raises ClipDataError for another result of the tokenizer."""
    found = tokenizer(captions)
    shape = (len(captions), context or getattr(found, "shape", (0, 0))[-1])
    if not isinstance(found, np.ndarray) or found.shape != shape or found.dtype.kind not in "iu":
        what = f"{type(found).__name__} {getattr(found, 'dtype', '')} {tuple(getattr(found, 'shape', ()))}"
        raise ClipDataError(f"the tokenizer must return an integer ndarray of shape [n, context], not {what}")
    return found.astype(np.int64, copy=False)
