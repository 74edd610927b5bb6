"""Statistics of the caption alone, vectorised over a unit."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clip_data.score.scorer import Batch

URL = r"(?i)\b(?:https?://|www\.)[^\s]"


@dataclass(frozen=True)
class CaptionScorer:
    """Counts and shares of a caption. A missing caption counts as an empty one, whose shares are all 0.

    Characters are Unicode code points; words are the runs between (Unicode) whitespace, punctuation included.
    """

    name: ClassVar[str] = "caption"
    version: ClassVar[int] = 1
    needs_image: ClassVar[bool] = False
    schema: ClassVar[pa.Schema] = pa.schema(
        [
            ("chars", pa.int32()),  # all characters, whitespace included
            ("words", pa.int32()),
            ("mean_word_length", pa.float32()),  # characters per word
            # shares of the characters that are not whitespace:
            ("letter_share", pa.float32()),  # letters and their marks (Unicode L, M)
            ("digit_share", pa.float32()),  # decimal digits (Unicode Nd)
            ("non_ascii_share", pa.float32()),
            # share of the words that occur earlier in the caption, in any case:
            ("repeated_word_share", pa.float32()),
            ("has_url", pa.bool_()),
        ]
    )

    def score(self, batch: Batch) -> pa.Table:
        caption = batch.samples["caption"].combine_chunks().cast(pa.string()).fill_null("")
        trimmed = pc.utf8_trim_whitespace(caption)
        split = pc.utf8_split_whitespace(trimmed)
        # an empty string splits into one empty word
        is_empty = pc.equal(pc.utf8_length(trimmed), 0).to_numpy(zero_copy_only=False)
        words = np.where(is_empty, 0, pc.list_value_length(split).to_numpy())
        parents = pc.list_parent_indices(split).to_numpy()
        flat = pc.list_flatten(split)

        def total(per_word: pa.Array) -> np.ndarray:
            return np.bincount(parents, weights=per_word.to_numpy(), minlength=len(caption))

        visible = total(pc.utf8_length(flat))
        # each match costs time and most characters are letters: count the others
        letters = visible - total(pc.count_substring_regex(flat, r"[^\p{L}\p{M}]"))
        codes = pc.dictionary_encode(pc.utf8_lower(flat)).indices.to_numpy().astype(np.int64)
        pairs = np.sort(parents * len(flat) + codes)  # one number per (caption, word); parents keep their order
        repeated = np.bincount(parents, weights=np.diff(pairs, prepend=-1) == 0, minlength=len(caption))
        columns = [
            pc.utf8_length(caption),
            words,
            _share(visible, words),
            _share(letters, visible),
            _share(total(pc.count_substring_regex(flat, r"\p{Nd}")), visible),
            _share(total(pc.count_substring_regex(flat, r"[^\x00-\x7F]")), visible),
            _share(repeated, words),
            pc.match_substring_regex(caption, URL),
        ]
        typed = [pa.array(column).cast(field.type) for field, column in zip(self.schema, columns, strict=True)]
        return pa.table(typed, schema=self.schema)


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    shares: np.ndarray = np.divide(part, whole, out=np.zeros(len(part)), where=whole > 0)
    return shares
