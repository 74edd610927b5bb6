"""The order of samples: a pure function of (seed, epoch, position), with random access and no state.

Within an epoch a source's units are shuffled, the rows of each unit are permuted, and the concatenation is cut into C
canonical streams, which are shuffled once more in windows. Epoch after epoch, each canonical stream is an infinite
sequence; global batch k takes positions [k·B/C, (k+1)·B/C) of every stream, so the order knows nothing of ranks.

Random numbers are raw Philox words with BLAKE2b keys. Both are specified bit for bit; numpy's distributions may
change between releases.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np

from clip_data.errors import ClipDataError
from clip_data.stream.mixing import pattern

VERSION = 1  # part of the manifest's fingerprint; a change of the order needs a new number
WINDOW = 8192  # samples; a window holds rows of the sidecar, and no images
MAX_STREAMS = 64


def words(count: int, *key: object) -> np.ndarray:
    """Returns `count` random 64-bit words (uint64) that depend on the key alone."""
    digest = hashlib.blake2b("\0".join(map(str, key)).encode(), digest_size=16).digest()
    return np.random.Philox(key=int.from_bytes(digest, "little")).random_raw(count)


def permutation(count: int, *key: object) -> np.ndarray:
    """Returns a permutation of range(count), int64, that depends on the key alone."""
    return np.argsort(words(count, *key), kind="stable")


def batching(samples: int, batch: int, streams: int, rank: int, world: int) -> int:
    """Checks how a global batch is divided and returns the number of canonical streams (0: gcd(batch, 64)).

    Raises ClipDataError, with the valid values, if something does not divide.
    """
    if batch < 1 or streams < 0 or world < 1 or not 0 <= rank < world:
        raise ClipDataError(
            f"global_batch_size={batch}, canonical_streams={streams}, rank={rank}, world_size={world}: "
            "sizes must be positive and the rank in [0, world_size)"
        )
    if samples < batch:
        fewer = f"the manifest has {samples} samples, fewer than a global batch of {batch}"
        raise ClipDataError(f"{fewer}: choose a batch of at most {samples}, or a wider selection")
    chosen = streams or math.gcd(batch, MAX_STREAMS)
    if batch % chosen:
        valid = _divisors(batch, 1024)
        raise ClipDataError(f"canonical_streams={chosen} does not divide the global batch of {batch}; valid: {valid}")
    if chosen % world:
        raise ClipDataError(
            f"world_size={world} does not divide the {chosen} canonical streams of a global batch of {batch}; "
            f"valid world sizes: {_divisors(chosen, chosen)}; or set canonical_streams to a multiple of {world}"
        )
    return chosen


def _divisors(number: int, limit: int) -> str:
    return ", ".join(str(n) for n in range(1, min(number, limit) + 1) if number % n == 0)


class SourceOrder:
    """The canonical streams of one source.

    Stream c starts its epoch e at its position floor((N·e + c) / C). By Hermite's identity those starts cut every
    epoch of N samples into C parts whose lengths differ by at most one, and no stream is ever ahead of another by
    more than one sample.
    """

    def __init__(
        self,
        names: Sequence[str],
        counts: np.ndarray,
        *,
        seed: int,
        source: int = 0,
        streams: int = 1,
        window: int = WINDOW,
        shuffle: bool = True,
    ) -> None:
        """`counts`, int64 [units], are the samples of each unit, all positive; `names` are the keys of permutations."""
        assert len(names) == len(counts)
        assert (counts > 0).all()
        self.names, self.counts = names, counts
        self.samples = int(counts.sum())
        self.streams, self.size, self.shuffle = streams, window, shuffle
        self.key = (seed, source)
        self._epoch = lru_cache(maxsize=3)(self._lay_out)  # two epochs are in use around a boundary

    def locate(self, stream: int, position: int) -> tuple[int, int]:
        """Returns (epoch, offset within the stream's share of that epoch) of a position of the infinite stream."""
        epoch = (self.streams * (position + 1) - stream - 1) // self.samples
        return epoch, position - self._start(stream, epoch)

    def length(self, stream: int, epoch: int) -> int:
        """Returns the number of samples of the stream in an epoch: N/C, rounded up or down."""
        return self._start(stream, epoch + 1) - self._start(stream, epoch)

    def window_of(self, stream: int, offset: int) -> tuple[int, int]:
        """Returns (window, place within it) of an offset. Windows are staggered: they do not all end at once."""
        window, place = divmod(offset + self._shift(stream), self.size)
        return window, place - (self._shift(stream) if window == 0 else 0)

    def window(self, stream: int, epoch: int, window: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the samples of a window in order: indices of units, and of kept rows within them; int64 [n] each."""
        low = max(window * self.size - self._shift(stream), 0)
        high = min((window + 1) * self.size - self._shift(stream), self.length(stream, epoch))
        places = self._offset(stream, epoch) + np.arange(low, high)
        order, ends = self._epoch(epoch)
        slots = np.searchsorted(ends, places, side="right")
        units = order[slots]
        rows = places - (ends[slots] - self.counts[units])
        if self.shuffle:
            for slot in range(slots[0], slots[-1] + 1):
                unit, mine = order[slot], slots == slot
                rows[mine] = permutation(self.counts[unit], *self.key, "rows", epoch, self.names[unit])[rows[mine]]
            final = permutation(len(places), *self.key, "window", epoch, stream, window)
            units, rows = units[final], rows[final]
        return units, rows

    def successors(self, stream: int, epoch: int, offset: int) -> Iterator[tuple[int, int]]:
        """Yields the other samples of the epoch as (stream, offset), in the order in which they may replace this one:
        the rest of the stream, its start, then the following streams.
        """
        for step in range(self.streams):
            other = (stream + step) % self.streams
            length = self.length(other, epoch)
            first = offset + 1 if step == 0 else 0
            for index in range(length - (step == 0)):
                yield other, (first + index) % length

    def _start(self, stream: int, epoch: int) -> int:
        return (self.samples * epoch + stream) // self.streams

    def _offset(self, stream: int, epoch: int) -> int:
        """Returns where the stream's share of the epoch begins: the sum of the lengths of the streams before."""
        return self._below(stream, epoch + 1) - self._below(stream, epoch)

    def _below(self, stream: int, epoch: int) -> int:
        quotient, remainder = divmod(self.samples * epoch, self.streams)
        return stream * quotient + max(0, stream + remainder - self.streams)

    def _shift(self, stream: int) -> int:
        return stream * self.size // self.streams

    def _lay_out(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        units = len(self.counts)
        order = permutation(units, *self.key, "units", epoch) if self.shuffle else np.arange(units)
        return order, np.cumsum(self.counts[order])


class GlobalOrder:
    """The global batches of one or several sources.

    Every canonical stream follows the same periodic pattern of sources, from its own starting point, and takes samples
    from the stream of the same number of each source. With one source the pattern is the identity.
    """

    def __init__(self, orders: Sequence[SourceOrder], weights: Sequence[float], batch: int, streams: int) -> None:
        self.orders = orders
        self.streams = streams
        self.per_stream = batch // streams
        self.pattern = pattern(weights)

    def place(self, batch: int, index: int) -> tuple[int, int, int, int]:
        """Returns (source, stream, epoch, offset) of the index-th sample of a global batch."""
        stream, step = divmod(index, self.per_stream)
        start = stream * self.pattern.period // self.streams
        source, position = self.pattern.at(start, batch * self.per_stream + step)
        return source, stream, *self.orders[source].locate(stream, position)


class PlainOrder:
    """Every sample once: sources one after another, each in the order of its units and rows."""

    def __init__(self, orders: Sequence[SourceOrder], batch: int) -> None:
        self.orders = orders
        self.batch = batch
        self.ends = np.cumsum([order.samples for order in orders])

    def place(self, batch: int, index: int) -> tuple[int, int, int, int]:
        """Returns (source, 0, 0, offset) of the index-th sample of a batch."""
        number = batch * self.batch + index
        source = int(np.searchsorted(self.ends, number, side="right"))
        return source, 0, 0, number - int(self.ends[source]) + self.orders[source].samples
