"""A tokenizer that refuses long captions. It does not import torch, because the reader processes run it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from clip_data.errors import ClipDataError

if TYPE_CHECKING:
    from clip_models.tokenizers import Tokenizer

SHOWN = 80  # characters of a caption in a message


@dataclass(frozen=True)
class WholeCaptions:
    """Wraps a model's tokenizer, which truncates long captions as OpenCLIP does, and raises an error for them."""

    tokenizer: Tokenizer

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Returns int64 [N, context]. Raises ClipDataError, which readers pass on, for a caption that is too long."""
        tokens = self.tokenizer.encode_numpy(texts)
        # Only a row without padding can have been truncated. Its end token may equal the padding.
        full = (tokens[:, -2:] != self.tokenizer.pad_token_id).any(axis=1)
        for row in np.flatnonzero(full).tolist():
            text = texts[row]
            if self.tokenizer.count_truncated(text):
                needed = self.tokenizer.count_tokens(text)
                shown = text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"
                raise ClipDataError(
                    f"a caption has {needed} tokens, but the model's context is {self.tokenizer.context_length}: "
                    f"{shown!r}; select shorter ones (--where 'words < 20'), or set data.long_captions = 'truncate'"
                )
        return tokens


@dataclass(frozen=True)
class SideBySide:
    """Tokenizes every caption by each of several tokenizers."""

    tokenizers: tuple[Callable[[Sequence[str]], np.ndarray], ...]

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Returns int64 [N, sum of the contexts], in the order of the tokenizers."""
        return np.concatenate([tokenizer(texts) for tokenizer in self.tokenizers], axis=1)
