"""Samples without a dataset: deterministic noise images and token ids, to measure devices without data."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from clip_core.config import fingerprint
from clip_train.errors import ClipTrainError

if TYPE_CHECKING:
    import numpy as np

    from clip_models.specs import ModelSpec

VERSION = 1  # raise it when the samples or their order change
_SPREAD = 1 << 20  # starts of an image in the noise; samples share bytes, but at other pixels


@dataclass(frozen=True, kw_only=True)
class SyntheticConfig:
    """Noise images and random captions of the model's shapes in place of data."""

    samples: int = 0
    """samples of an epoch; 0 reads data.sources"""
    tokens: int = 0
    """tokens of each caption, with its start and end; 0 fills the context of the model"""

    def __bool__(self) -> bool:
        return self.samples > 0

    def check(self, context: int) -> None:
        """Raises ClipTrainError for a value that is not valid. `context`: tokens that the model reads."""
        if self.samples < 0:
            raise ClipTrainError(f"data.synthetic.samples = {self.samples} must be at least 0")
        if self.tokens and not self:
            raise ClipTrainError(f"data.synthetic.tokens = {self.tokens} requires data.synthetic.samples")
        if self.tokens and not 3 <= self.tokens <= context:
            raise ClipTrainError(f"data.synthetic.tokens = {self.tokens} must be 0, or from 3 to the context {context}")

    @property
    def fingerprint(self) -> str:
        """32 hex digits that name the samples."""
        return fingerprint({"synthetic": VERSION, "samples": self.samples, "tokens": self.tokens})


class SyntheticStream:
    """The part of one rank of an endless sequence of batches, with the interface of `SampleStream`.

    The global batches are a function of (config, image size, text specs, seed, step, batch size). Each epoch has every
    sample once, in an order of its own. Every world size that divides the batch can go on where another stopped.
    """

    corrupt_uids: Sequence[str] = ()

    def __init__(
        self,
        config: SyntheticConfig,
        *,
        image_size: tuple[int, int],
        text_specs: Sequence[ModelSpec],
        global_batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        import numpy as np

        self._config, self._seed, self._batch = config, seed, global_batch_size
        self._local = global_batch_size // world_size
        self._first = rank * self._local
        self._shape = (3, *image_size)
        self._pixels = math.prod(self._shape)
        words = np.random.PCG64(VERSION).random_raw((_SPREAD + self._pixels) // 8 + 1)
        self._noise = words.view(np.uint8)
        self._captions = [_Captions(spec, config.tokens) for spec in text_specs]
        self._orders: dict[int, tuple[int, int]] = {}
        self._step = self._batches = 0
        self._wait_s = 0.0

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> dict[str, Any]:
        """Returns {"image": uint8 [B, 3, H, W], "text": int64 [B, sum of the contexts], "uid", "ordinal"}."""
        import numpy as np

        started = time.perf_counter()
        position = self._step * self._batch + self._first
        indices = [self._index(position + number) for number in range(self._local)]
        keys = _mixed(np.array(indices, np.uint64))
        images = np.empty((self._local, *self._shape), np.uint8)
        for image, start in zip(images, (keys % np.uint64(_SPREAD)).tolist(), strict=True):
            image[:] = self._noise[start : start + self._pixels].reshape(self._shape)
        text = np.concatenate([captions(keys) for captions in self._captions], axis=1)
        uids = [f"{key:016x}{index:016x}" for key, index in zip(keys.tolist(), indices, strict=True)]
        self._step += 1
        self._batches += 1
        self._wait_s += time.perf_counter() - started
        return {"image": images, "text": text, "uid": uids, "ordinal": np.array(indices, np.int64)}

    def _index(self, position: int) -> int:
        """Returns the sample at a position of the endless sequence."""
        epoch, place = divmod(position, self._config.samples)
        if epoch not in self._orders:
            self._orders = {epoch: self._order(epoch)}
        stride, shift = self._orders[epoch]
        return (place * stride + shift) % self._config.samples

    def _order(self, epoch: int) -> tuple[int, int]:
        """Returns (stride, shift) of an epoch; the stride has no divisor in common with the number of samples."""
        samples, draw = self._config.samples, int(fingerprint([self._seed, epoch]), 16)
        stride = 1 + draw % samples
        while math.gcd(stride, samples) > 1:  # ends at samples + 1 at the latest
            stride += 1
        return stride, (draw >> 64) % samples

    @property
    def stats(self) -> dict[str, int | float]:
        """The counts of `SampleStream.stats`; nothing is read, so nothing is corrupt."""
        counts = {"corrupt": 0, "truncated": 0, "bytes_read": 0, "restarts": 0, "wait_s": self._wait_s}
        return {"batches": self._batches, "samples": self._batches * self._local, **counts}

    def state_dict(self) -> dict[str, Any]:
        """Returns the next step and what the order of the samples depends on."""
        return {"step": self._step, **self._identity()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues at the step of a state. Raises ClipTrainError if the state is of another order of samples."""
        for name, value in self._identity().items():
            if state.get(name) != value:
                raise ClipTrainError(
                    f"the stream's state has {name} = {state.get(name)!r}, this stream has {value!r}: "
                    "use the same samples, seed and batch size"
                )
        self._step = state["step"]

    def _identity(self) -> dict[str, Any]:
        return {"manifest": self._config.fingerprint, "seed": self._seed, "global_batch_size": self._batch}

    def close(self) -> None:
        """Does nothing: there are no files and no workers."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class _Captions:
    """Token ids for one text tower: words, the end token that it pools, and padding."""

    def __init__(self, spec: ModelSpec, tokens: int) -> None:
        import numpy as np

        text: Any = spec.text
        self._context = text.context_length
        self._length = min(tokens or self._context, self._context)
        self._pad = text.pad_id or 0
        end = getattr(text, "eos_id", None)
        self._end = text.vocab_size - 1 if end is None else end  # pooling by argmax finds the highest id
        special = {self._pad, self._end, text.vocab_size - 1}
        words = np.array([token for token in range(text.vocab_size) if token not in special], np.int64)
        draws = np.random.PCG64(VERSION + 1).random_raw(_SPREAD // 16 + self._context) % np.uint64(len(words))
        self._words = words[draws.astype(np.int64)]

    def __call__(self, keys: np.ndarray) -> np.ndarray:
        """Returns int64 [B, context] for the samples' keys, uint64 [B]."""
        import numpy as np

        starts = (keys >> np.uint64(32)) % np.uint64(_SPREAD // 16)
        out = np.full((len(keys), self._context), self._pad, np.int64)
        columns = np.arange(self._length)
        out[:, : self._length] = self._words[starts.astype(np.int64)[:, None] + columns]
        out[:, self._length - 1] = self._end
        return out


def _mixed(index: np.ndarray) -> np.ndarray:
    """Returns uint64 numbers that look random (the finaliser of SplitMix64, Steele et al. 2014); one-to-one."""
    import numpy as np

    with np.errstate(over="ignore"):
        key = index + np.uint64(0x9E3779B97F4A7C15)
        key = (key ^ (key >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        key = (key ^ (key >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return key ^ (key >> np.uint64(31))
