"""CLIP's byte-pair encoding, with ids identical to OpenCLIP's SimpleTokenizer. Free of torch until it is called.

Captions are split at white space, and the ids of each piece are cached: no token of this encoding crosses white space,
so that most captions are a few dictionary look-ups.
"""

import functools
import gzip
import heapq
import itertools
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import regex

from clip_models.specs import ModelSpec
from clip_models.specs.values import require_choice
from clip_models.tokenizers.base import Captions, Tokenizer, require_strings
from clip_models.tokenizers.cleaning import mend
from clip_models.tokenizers.reductions import REDUCTIONS, keep_by_syntax, reduce_ids

START, END = "<start_of_text>", "<end_of_text>"
_MERGES = 49152 - 256 - 2  # the file has more than CLIP was trained with
_CACHED_PIECES = 1 << 16  # about 15 MB at the most
_LONGEST_CACHED = 32
_PIECE = regex.compile(
    rf"{START}|{END}|'s|'t|'re|'ve|'m|'ll|'d|[\p{{L}}]+|[\p{{N}}]|[^\s\p{{L}}\p{{N}}]+", regex.IGNORECASE
)


class _Vocabulary(NamedTuple):
    encoder: dict[str, int]
    decoder: dict[int, str]
    ranks: dict[tuple[str, str], int]
    symbol_of_byte: list[str]
    byte_of_symbol: dict[str, int]


@functools.cache
def _vocabulary() -> _Vocabulary:
    """Returns the vocabulary, read once per process."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    # Bytes that are not printable are code points from 256 on; ids follow this order.
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
    """Returns the byte-pair encoding of one word: joins all occurrences of its best-ranked pair until none is left.

    A heap of pairs over a linked list makes it n·log n: text without spaces gives words of many thousand bytes.
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


class ClipTokenizer(Tokenizer):
    """Captions → token ids: start, the caption's tokens, end, zeros. A long caption loses its tail, or what `reduction`
    removes, and keeps its end token.

    `clean`: lower, whitespace (keeps the case), whitespace_underscore or canonicalize. `reduction`: "" or CLIPA's
    simple, random, shuffle, syntax. The vocabulary is not pickled: each process reads it once.
    """

    own_cleaning = "lower"
    sot_token_id: int = 49406
    eot_token_id: int = 49407
    pad_token_id: int = 0

    def __init__(self, context_length: int = 77, clean: str = "lower", reduction: str = "") -> None:
        super().__init__(context_length, clean)
        require_choice("tokenizer.reduction", reduction, ("", *REDUCTIONS))
        self.reduction = reduction
        self._ids_of_piece: dict[str, tuple[int, ...]] = {}

    @classmethod
    def from_spec(cls, spec: ModelSpec, context_length: int, clean: str, cache_dir: Any = None) -> "ClipTokenizer":
        return cls(context_length, clean, spec.tokenizer.reduction)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_ids_of_piece": {}}

    @property
    def vocab_size(self) -> int:
        return len(_vocabulary().encoder)

    def encode(self, text: str) -> list[int]:
        return self._ids(require_strings([text])[0], None)

    def count_truncated(self, texts: Captions, context_length: int | None = None) -> int:
        room = self._length(context_length) - 2
        return sum(len(self._ids(text, room)) > room for text in require_strings(texts))

    def vocabulary(self) -> tuple[dict[str, int], list[tuple[str, str]]]:
        """Returns (the id of every token, the merges from the first to the last)."""
        return dict(_vocabulary().encoder), list(_vocabulary().ranks)

    def save(self, folder: Path) -> list[str]:
        """Writes nothing: the vocabulary is part of this package, the config of the model's spec."""
        return []

    def _rows(self, texts: Sequence[str], length: int | None) -> Iterator[list[int]]:
        start, end = self.sot_token_id, self.eot_token_id
        room = None if length is None else length - 2
        if room is None or not self.reduction:
            for text in texts:
                yield [start, *self._ids(text, room)[:room], end]
            return
        if self.reduction == "syntax":
            texts = keep_by_syntax(texts, room)
        for text in texts:
            yield [start, *reduce_ids(self._ids(text, None), room, self.reduction), end]

    def _decode(self, ids: list[int]) -> str:
        """Returns the text with a space after each word."""
        vocabulary = _vocabulary()
        joined = "".join([vocabulary.decoder[i] for i in ids])
        raw = bytes(vocabulary.byte_of_symbol[symbol] for symbol in joined)
        return raw.decode("utf-8", errors="replace").replace("</w>", " ")

    def _ids(self, text: str, enough: int | None) -> list[int]:
        """Returns the ids of `text`, all or at least the first `enough` + 1."""
        ids: list[int] = []
        known = self._ids_of_piece
        for piece in mend(text, self.clean).split():
            found = known.get(piece)
            if found is None:
                found = self._ids_of(piece)
                if len(piece) <= _LONGEST_CACHED:
                    if len(known) >= _CACHED_PIECES:
                        known.clear()
                    known[piece] = found
            ids += found
            if enough is not None and len(ids) > enough:
                break
        return ids

    def _ids_of(self, piece: str) -> tuple[int, ...]:
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
