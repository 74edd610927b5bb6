"""What a run does with captions that are longer than the text tower's context. Free of torch: readers run it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from clip_data.errors import ClipDataError

if TYPE_CHECKING:
    from clip_models.tokenizers import Tokenizer

SHOWN = 80  # characters of a caption in a message


@dataclass(frozen=True)
class WholeCaptions:
    """A tokenizer that refuses a caption it would have to cut, where the model's own cuts as OpenCLIP does."""

    tokenizer: Tokenizer

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """int64 [N, context]. Raises ClipDataError, which readers pass on, at the first caption that does not fit."""
        tokens = self.tokenizer.encode_numpy(texts)
        # Only a row without padding can have been cut; what ends it may be what the tokenizer pads with.
        full = (tokens[:, -2:] != self.tokenizer.pad_token_id).any(axis=1)
        for row in np.flatnonzero(full).tolist():
            text = texts[row]
            if self.tokenizer.count_truncated(text):
                needed = self.tokenizer.count_tokens(text)
                shown = text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"
                raise ClipDataError(
                    f"a caption has {needed} tokens, the model's context {self.tokenizer.context_length}: {shown!r}; "
                    "select shorter ones (--where 'words < 20'), or cut them with data.long_captions = 'truncate'"
                )
        return tokens
