"""The base of all tokenizers. Free of torch until one is called."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from clip_models.errors import ClipModelsError
from clip_models.specs.values import require_choice
from clip_models.tokenizers.cleaning import CLEANINGS

if TYPE_CHECKING:
    import torch

    from clip_models.specs import ModelSpec

Captions = str | Sequence[str]


class Tokenizer(ABC):
    """Captions → rows of token ids of one length: the caption's tokens, the end token if there is one, and padding.

    A caption that is too long loses its tail and keeps its end token. Tokenizers can be pickled; an unpickled one needs
    neither torch nor a network, so that reader processes are small. A kind is registered in
    `clip_models.specs.TOKENIZERS`, or named as `module:class` in a spec.
    """

    own_cleaning: ClassVar[str] = "whitespace"
    """Cleaning mode of the kind if the config names none."""
    pad_token_id: int
    """Id that fills the rows."""
    eot_token_id: int | None
    """Id that ends a caption; None if there is none."""

    def __init__(self, context_length: int, clean: str) -> None:
        """`context_length`: tokens of a row. `clean`: a mode of `clean_caption`."""
        require_choice("tokenizer.clean", clean, CLEANINGS)
        self.clean = clean
        self.context_length = context_length
        self._length(None)

    @classmethod
    def from_spec(cls, spec: "ModelSpec", context_length: int, clean: str, cache_dir: Any = None) -> Self:
        """Returns the tokenizer of a spec. Raises ClipModelsError if it cannot be built."""
        return cls(context_length, clean)

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """One more than the largest id that it can emit."""

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Returns all ids of one caption, without start and end."""

    @abstractmethod
    def save(self, folder: Path) -> list[str]:
        """Writes the files of the tokenizer into an existing folder; returns their names."""

    @abstractmethod
    def _rows(self, texts: Sequence[str], length: int | None) -> Iterable[list[int]]:
        """Returns the ids of each caption with start and end, cut to `length` unless that is None."""

    @abstractmethod
    def _decode(self, ids: list[int]) -> str: ...

    def __call__(self, texts: Captions, context_length: int | None = None) -> "torch.Tensor":
        """Returns an int64 tensor [N, context_length]. Raises ClipModelsError for a caption that is not a string."""
        import torch

        return torch.from_numpy(self.encode_numpy(texts, context_length))

    def encode_numpy(self, texts: Captions, context_length: int | None = None) -> np.ndarray:
        """Returns the same as an array, without torch."""
        length = self._length(context_length)
        texts = require_strings(texts)
        out = np.full((len(texts), length), self.pad_token_id, dtype=np.int64)
        for row, ids in enumerate(self._rows(texts, length)):
            out[row, : len(ids)] = ids
        return out

    def count_tokens(self, text: str) -> int:
        """Returns how many tokens the whole caption has, its start and end included."""
        (ids,) = self._rows(require_strings([text]), None)
        return len(ids)

    def count_truncated(self, texts: Captions, context_length: int | None = None) -> int:
        """Returns how many of `texts` have more tokens than fit."""
        length = self._length(context_length)
        return sum(len(ids) > length for ids in self._rows(require_strings(texts), None))

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of `ids`, with start, end and padding. Raises ClipModelsError for an unknown id."""
        plain = [int(i) for i in ids]
        last = self._last_id()
        for i in plain:
            if not 0 <= i <= last:
                raise ClipModelsError(f"{i} is not a token id; ids go from 0 to {last}")
        return self._decode(plain)

    def _last_id(self) -> int:
        """Returns the highest id that can be decoded, which may be above those that captions give."""
        return self.vocab_size - 1

    def _length(self, context_length: int | None) -> int:
        length = self.context_length if context_length is None else context_length
        if length < 3:
            raise ClipModelsError(f"context_length {length} has no room for start, a token and end")
        return length


def require_strings(texts: Captions) -> Sequence[str]:
    """Returns the captions as a sequence. Raises ClipModelsError for the first that is not a string."""
    texts = [texts] if isinstance(texts, str) else texts
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise ClipModelsError(f"caption {row} is {text!r}, of type {type(text).__name__}; captions are strings")
    return texts
