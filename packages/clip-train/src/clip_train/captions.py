"""What a run does with captions that are longer than the text tower's context. Free of torch: readers run it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from clip_data.errors import ClipDataError
from clip_models.tokenizer import ClipTokenizer

if TYPE_CHECKING:
    import numpy as np

SHOWN = 80  # characters of a caption in a message


@dataclass(frozen=True)
class WholeCaptions:
    """A tokenizer that refuses a caption it would have to cut, where ClipTokenizer cuts as OpenCLIP does."""

    tokenizer: ClipTokenizer

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """int64 [N, context]. Raises ClipDataError, which readers pass on, at the first caption that does not fit."""
        tokens = self.tokenizer.encode_numpy(texts)
        for text, row in zip(texts, tokens, strict=True):
            # Only a row without padding can have been cut.
            if row[-1] and self.tokenizer.count_truncated(text):
                needed = len(self.tokenizer.encode(text)) + 2
                shown = text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"
                raise ClipDataError(
                    f"a caption has {needed} tokens, the model's context {self.tokenizer.context_length}: {shown!r}; "
                    "select shorter ones (--where 'words < 20'), or cut them with data.long_captions = 'truncate'"
                )
        return tokens
