"""The tokenizer of a run's captions. It does not import torch, because the reader processes run it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from clip_models.tokenizers import Tokenizer


@dataclass(frozen=True)
class Captions:
    """Tokenizes every caption by each of several tokenizers, and tells which captions were cut.

    A caption that is too long loses its tail and keeps its end token, as in OpenCLIP.
    """

    tokenizers: tuple[Tokenizer, ...]

    def __call__(self, captions: Sequence[str]) -> np.ndarray:
        """Returns int64 [N, sum of the contexts], in the order of the tokenizers."""
        return np.concatenate([tokenizer.encode_numpy(captions) for tokenizer in self.tokenizers], axis=1)

    def truncated(self, captions: Sequence[str], tokens: np.ndarray) -> list[int]:
        """Returns the indices of the captions that are too long for a tokenizer, given their tokens."""
        return [row for row in range(len(captions)) if self.too_long(captions[row], tokens[row])]

    def too_long(self, caption: str, tokens: np.ndarray) -> tuple[int, int] | None:
        """Returns (its tokens, the context) of the first tokenizer that cuts a caption, given its row of tokens."""
        start = 0
        for tokenizer in self.tokenizers:
            last = tokens[start : start + tokenizer.context_length][-2:]
            start += tokenizer.context_length
            # Only a row without padding can have been cut. The end token may equal the padding.
            if (last != tokenizer.pad_token_id).any() and tokenizer.count_truncated([caption]):
                return tokenizer.count_tokens(caption), tokenizer.context_length
        return None
