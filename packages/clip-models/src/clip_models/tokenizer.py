"""CLIP's byte-pair encoding, with ids identical to OpenCLIP's SimpleTokenizer. Free of torch until it is called.

Captions are cut at white space, and the ids of each piece are remembered: no token of this encoding crosses white
space, so that most captions are a handful of dictionary look-ups.
"""

import functools
import gzip
import heapq
import html
import itertools
import re
import string
from collections.abc import Iterable, Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Any, NamedTuple

import ftfy
import numpy as np
import regex

from clip_models.errors import ClipModelsError
from clip_models.specs import ModelSpec, TokenizerConfig, get_model_spec

if TYPE_CHECKING:
    import torch

START, END = "<start_of_text>", "<end_of_text>"
_MERGES = 49152 - 256 - 2  # the file holds more than CLIP was trained with
_CACHED_PIECES = 1 << 16  # about 15 MB at the most
_LONGEST_CACHED = 32
_PIECE = regex.compile(
    rf"{START}|{END}|'s|'t|'re|'ve|'m|'ll|'d|[\p{{L}}]+|[\p{{N}}]|[^\s\p{{L}}\p{{N}}]+", regex.IGNORECASE
)
# Text on which neither ftfy nor html.unescape has anything to do: no entities, no control characters, only ASCII.
_CLEAN_ALREADY = re.compile(r"[\t\n\r\x20-\x25\x27-\x7e]*")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


class _Vocabulary(NamedTuple):
    encoder: dict[str, int]
    decoder: dict[int, str]
    ranks: dict[tuple[str, str], int]
    symbol_of_byte: list[str]
    byte_of_symbol: dict[str, int]


@functools.cache
def _vocabulary() -> _Vocabulary:
    """The vocabulary file, read once per process."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    # Bytes that would print badly stand as the code points from 256 on; ids follow this order.
    byte_of_symbol = {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
    symbol_of_byte = [""] * 256
    for symbol, byte in byte_of_symbol.items():
        symbol_of_byte[byte] = symbol
    path = files("clip_models") / "data" / "bpe_simple_vocab_16e6.txt.gz"
    with path.open("rb") as raw, gzip.open(raw, "rt", encoding="utf-8") as lines:
        merges = [tuple(line.split()) for line in itertools.islice(lines, 1, 1 + _MERGES)]
    tokens = [*byte_of_symbol, *(f"{symbol}</w>" for symbol in byte_of_symbol), *map("".join, merges), START, END]
    encoder = {token: i for i, token in enumerate(tokens)}
    return _Vocabulary(
        encoder=encoder,
        decoder={i: token for token, i in encoder.items()},
        ranks={(left, right): rank for rank, (left, right) in enumerate(merges)},
        symbol_of_byte=symbol_of_byte,
        byte_of_symbol=byte_of_symbol,
    )


def _merge(symbols: list[str], ranks: dict[tuple[str, str], int]) -> list[str]:
    """Byte-pair encoding of one word: again and again join all occurrences of its best-ranked pair, left to right.

    A heap of pairs over a linked list makes it n·log n: text without spaces comes as words of many thousand bytes.
    """
    size = len(symbols)
    following = [*range(1, size), -1]
    preceding = [*range(-1, size - 1)]
    absent = len(ranks)
    heap = [
        (rank, i) for i, pair in enumerate(itertools.pairwise(symbols)) if (rank := ranks.get(pair, absent)) < absent
    ]
    heapq.heapify(heap)
    while heap:
        rank = heap[0][0]
        joined = []
        while heap and heap[0][0] == rank:
            i = heapq.heappop(heap)[1]
            j = following[i]
            if j < 0 or not symbols[i] or ranks.get((symbols[i], symbols[j])) != rank:
                continue  # an earlier join has consumed one of the two
            symbols[i] += symbols[j]
            symbols[j] = ""
            following[i] = following[j]
            if following[j] >= 0:
                preceding[following[j]] = i
            following[j] = -1
            joined.append(i)
        for i in joined:
            for left in (preceding[i], i):
                right = following[left] if left >= 0 else -1
                if right >= 0 and (new := ranks.get((symbols[left], symbols[right]), absent)) < absent:
                    heapq.heappush(heap, (new, left))
    return [symbol for symbol in symbols if symbol]


class ClipTokenizer:
    """Captions → token ids: start, the caption's tokens, end, zeros. A caption that is too long loses its tail and
    keeps its end token; `count_truncated` tells how many do.

    Pickles as its three settings: a worker process reads the vocabulary itself, once.
    """

    def __init__(self, context_length: int = 77, clean: str = "lower") -> None:
        if context_length < 3:
            raise ClipModelsError(f"context_length {context_length} has no room for start, a token and end")
        self.context_length = context_length
        self.clean = TokenizerConfig(clean=clean).clean
        self._ids_of_piece: dict[str, tuple[int, ...]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_ids_of_piece": {}}

    @property
    def vocab_size(self) -> int:
        return len(_vocabulary().encoder)

    @property
    def sot_token_id(self) -> int:
        return _vocabulary().encoder[START]

    @property
    def eot_token_id(self) -> int:
        return _vocabulary().encoder[END]

    def __call__(self, texts: str | Sequence[str], context_length: int | None = None) -> "torch.Tensor":
        """int64 tensor [N, context_length]; `encode_numpy` without torch."""
        import torch

        return torch.from_numpy(self.encode_numpy(texts, context_length))

    def encode_numpy(self, texts: str | Sequence[str], context_length: int | None = None) -> np.ndarray:
        """int64 [N, context_length]. ClipModelsError names the first caption that is not a string."""
        length = self.context_length if context_length is None else context_length
        if length < 3:
            raise ClipModelsError(f"context_length {length} has no room for start, a token and end")
        texts = [texts] if isinstance(texts, str) else texts
        start, end = self.sot_token_id, self.eot_token_id
        out = np.zeros((len(texts), length), dtype=np.int64)
        for row, text in enumerate(texts):
            ids = self._encode(text, length - 2, row)[: length - 2]
            out[row, : len(ids) + 2] = [start, *ids, end]
        return out

    def encode(self, text: str) -> list[int]:
        """All ids of one caption, without start and end."""
        return self._encode(text, None, 0)

    def count_truncated(self, texts: str | Sequence[str], context_length: int | None = None) -> int:
        """How many of `texts` have more tokens than fit."""
        room = (self.context_length if context_length is None else context_length) - 2
        texts = [texts] if isinstance(texts, str) else texts
        return sum(len(self._encode(text, room, row)) > room for row, text in enumerate(texts))

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`; a space follows each word. Start, end and padding are spelled out, as in OpenCLIP."""
        vocabulary = _vocabulary()
        try:
            joined = "".join([vocabulary.decoder[int(i)] for i in ids])
        except KeyError as error:
            raise ClipModelsError(
                f"{error.args[0]} is not a token id; ids go from 0 to {self.vocab_size - 1}"
            ) from None
        raw = bytes(vocabulary.byte_of_symbol[symbol] for symbol in joined)
        return raw.decode("utf-8", errors="replace").replace("</w>", " ")

    def _encode(self, text: str, enough: int | None, row: int) -> list[int]:
        """The ids of `text`, all of them or at least the first `enough` + 1."""
        if not isinstance(text, str):
            raise ClipModelsError(f"caption {row} is {text!r}, of type {type(text).__name__}; captions are strings")
        ids: list[int] = []
        known = self._ids_of_piece
        for piece in self._clean(text).split():
            found = known.get(piece)
            if found is None:
                found = self._encode_piece(piece)
                if len(piece) <= _LONGEST_CACHED:
                    if len(known) >= _CACHED_PIECES:
                        known.clear()
                    known[piece] = found
            ids += found
            if enough is not None and len(ids) > enough:
                break
        return ids

    def _encode_piece(self, piece: str) -> tuple[int, ...]:
        vocabulary = _vocabulary()
        ids: list[int] = []
        for word in _PIECE.findall(piece):
            if word in (START, END):
                ids.append(vocabulary.encoder[word])
                continue
            symbols = [vocabulary.symbol_of_byte[byte] for byte in word.encode("utf-8")]
            symbols[-1] += "</w>"
            ids += [vocabulary.encoder[symbol] for symbol in _merge(symbols, vocabulary.ranks)]
        return tuple(ids)

    def _clean(self, text: str) -> str:
        if not _CLEAN_ALREADY.fullmatch(text):
            text = html.unescape(html.unescape(ftfy.fix_text(text)))
        if self.clean == "whitespace":
            return text
        if self.clean == "canonicalize":
            text = text.replace("_", " ").translate(_NO_PUNCTUATION)
        return text.lower()


def get_tokenizer(model_name: str | ModelSpec, context_length: int | None = None) -> ClipTokenizer:
    """The tokenizer of a named architecture or of a spec, with its context length unless another is given."""
    spec = model_name if isinstance(model_name, ModelSpec) else get_model_spec(model_name)
    return ClipTokenizer(spec.text.context_length if context_length is None else context_length, spec.tokenizer.clean)
