"""What every tokenizer offers, and what they share. Free of torch until one is called."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from clip_models.errors import ClipModelsError
from clip_models.specs.plain import require_choice
from clip_models.tokenizers.cleaning import CLEANINGS

if TYPE_CHECKING:
    import torch

Captions = str | Sequence[str]


class Tokenizer(Protocol):
    """Captions → rows of token ids, all of one length: the caption's tokens, its end where the tokenizer has one, and
    padding on the right. A caption that is too long loses its tail and keeps its end token.

    Tokenizers pickle, and what is unpickled needs neither torch nor a network, so that reader processes are small.
    """

    context_length: int
    """Tokens of a row."""
    clean: str
    """lower, whitespace, whitespace_underscore or canonicalize; see `clean_caption`."""
    pad_token_id: int
    """What fills the rows."""

    @property
    def eot_token_id(self) -> int | None:
        """What ends a caption; None where nothing does."""

    @property
    def vocab_size(self) -> int:
        """The largest id that can come out, and one."""

    def __call__(self, texts: Captions, context_length: int | None = None) -> "torch.Tensor":
        """int64 tensor [N, context_length] of N captions. ClipModelsError names the first that is not a string."""

    def encode_numpy(self, texts: Captions, context_length: int | None = None) -> np.ndarray:
        """The same as an array, without torch."""

    def encode(self, text: str) -> list[int]:
        """All ids of one caption, without start and end."""

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`. Start, end and padding are spelled out. ClipModelsError for what is not an id."""

    def count_tokens(self, text: str) -> int:
        """How many tokens a row needs to hold the whole caption, its start and end included."""

    def count_truncated(self, texts: Captions, context_length: int | None = None) -> int:
        """How many of `texts` have more tokens than fit."""

    def save(self, folder: Path) -> list[str]:
        """Writes what is needed to build the tokenizer again into an existing folder; gives the files' names."""


class CaptionTokenizer(ABC):
    """The common part: checks, rows and counts. A subclass turns strings into lists of ids."""

    pad_token_id: int
    eot_token_id: int | None

    def __init__(self, context_length: int, clean: str) -> None:
        require_choice("tokenizer.clean", clean, CLEANINGS)
        self.clean = clean
        self.context_length = context_length
        self._length(None)

    @property
    @abstractmethod
    def vocab_size(self) -> int: ...

    @abstractmethod
    def encode(self, text: str) -> list[int]: ...

    @abstractmethod
    def _rows(self, texts: Sequence[str], length: int | None) -> Iterable[list[int]]:
        """The ids of each caption with start and end; cut to `length`, or whole where that is None."""

    @abstractmethod
    def _decode(self, ids: list[int]) -> str: ...

    def __call__(self, texts: Captions, context_length: int | None = None) -> "torch.Tensor":
        import torch

        return torch.from_numpy(self.encode_numpy(texts, context_length))

    def encode_numpy(self, texts: Captions, context_length: int | None = None) -> np.ndarray:
        length = self._length(context_length)
        texts = require_strings(texts)
        out = np.full((len(texts), length), self.pad_token_id, dtype=np.int64)
        for row, ids in enumerate(self._rows(texts, length)):
            out[row, : len(ids)] = ids
        return out

    def count_tokens(self, text: str) -> int:
        (ids,) = self._rows(require_strings([text]), None)
        return len(ids)

    def count_truncated(self, texts: Captions, context_length: int | None = None) -> int:
        length = self._length(context_length)
        return sum(len(ids) > length for ids in self._rows(require_strings(texts), None))

    def decode(self, ids: Iterable[int]) -> str:
        plain = [int(i) for i in ids]
        last = self._last_id()
        for i in plain:
            if not 0 <= i <= last:
                raise ClipModelsError(f"{i} is not a token id; ids go from 0 to {last}")
        return self._decode(plain)

    def _last_id(self) -> int:
        """The highest id that has a meaning, which captions need not be able to give."""
        return self.vocab_size - 1

    def _length(self, context_length: int | None) -> int:
        length = self.context_length if context_length is None else context_length
        if length < 3:
            raise ClipModelsError(f"context_length {length} has no room for start, a token and end")
        return length


def require_strings(texts: Captions) -> Sequence[str]:
    """The captions as a sequence; ClipModelsError names the first that is not a string."""
    texts = [texts] if isinstance(texts, str) else texts
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise ClipModelsError(f"caption {row} is {text!r}, of type {type(text).__name__}; captions are strings")
    return texts
