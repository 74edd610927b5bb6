"""OpenAI's tiktoken encodings, with start, end and padding on ids above their vocabulary."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clip_models.errors import ClipModelsError
from clip_models.extras import require
from clip_models.specs import ModelSpec
from clip_models.tokenizers.base import Tokenizer, require_strings
from clip_models.tokenizers.cleaning import clean_caption


class TikTokenTokenizer(Tokenizer):
    """Captions → token ids: start if there is one, the caption's tokens, end, padding.

    `name`: an encoding of tiktoken (r50k_base, …), which the library fetches once (into TIKTOKEN_CACHE_DIR), or a
    `.tiktoken` file, whose words are split as in the encoding of its name, or as in GPT-2. The ids of start, end and
    padding are those of the model's text config. Raises ClipModelsError.
    """

    def __init__(
        self,
        name: str | os.PathLike[str],
        context_length: int = 77,
        clean: str = "whitespace",
        *,
        eos_id: int,
        pad_id: int,
        bos_id: int | None = None,
    ) -> None:
        super().__init__(context_length, clean)
        self.name = os.fspath(name)
        self.bos_token_id = bos_id
        self.eot_token_id: int = eos_id
        self.pad_token_id = pad_id
        self._encoding = _load(self.name)
        self._controls = {eos_id: "<|eos|>", pad_id: "<|pad|>", **({} if bos_id is None else {bos_id: "<|bos|>"})}
        if len(self._controls) < (2 if bos_id is None else 3):
            raise ClipModelsError(f"the ids of start {bos_id}, end {eos_id} and padding {pad_id} must differ")
        words = self._encoding.n_vocab
        if min(self._controls) < words:
            raise ClipModelsError(
                f"id {min(self._controls)} of a control token is in the vocabulary of {self.name!r}; set text.eos_id,"
                f" text.pad_id and text.bos_id from {words} on"
            )

    @classmethod
    def from_spec(cls, spec: ModelSpec, context_length: int, clean: str, cache_dir: Any = None) -> "TikTokenTokenizer":
        text: Any = spec.text  # a modern tower with eos_id, as the spec has checked
        ids = {"eos_id": text.eos_id, "pad_id": text.pad_id, "bos_id": text.bos_id}
        return cls(spec.tokenizer.name, context_length, clean, **ids)

    @property
    def vocab_size(self) -> int:
        return max(self._controls) + 1

    def encode(self, text: str) -> list[int]:
        return list(self._encoding.encode_ordinary(clean_caption(require_strings([text])[0], self.clean)))

    def save(self, folder: Path) -> list[str]:
        import base64

        name = f"{self._encoding.name}.tiktoken"
        ranks = sorted(self._encoding._mergeable_ranks.items(), key=lambda item: item[1])
        lines = [base64.b64encode(token) + f" {rank}\n".encode() for token, rank in ranks]
        (folder / name).write_bytes(b"".join(lines))
        return [name]

    def _rows(self, texts: Sequence[str], length: int | None) -> list[list[int]]:
        start = [] if self.bos_token_id is None else [self.bos_token_id]
        room = None if length is None else length - 1 - len(start)
        return [[*start, *self.encode(text)[:room], self.eot_token_id] for text in texts]

    def _decode(self, ids: list[int]) -> str:
        parts: list[bytes] = []
        for i in ids:
            if i in self._controls:
                parts.append(self._controls[i].encode())
                continue
            try:
                parts.append(self._encoding.decode_single_token_bytes(i))
            except KeyError:
                raise ClipModelsError(f"{i} is not a token id of {self.name!r}") from None
        return b"".join(parts).decode("utf-8", errors="replace")


def _load(name: str) -> Any:
    tiktoken = require("tiktoken", "tiktoken", f"the tokenizer {name!r}")
    path = Path(name)
    if path.suffix == ".tiktoken":
        return _from_file(tiktoken, path)
    if name not in tiktoken.list_encoding_names():
        known = ", ".join(tiktoken.list_encoding_names())
        raise ClipModelsError(f"tiktoken has no encoding {name!r}; choose from {known}, or give a .tiktoken file")
    try:
        return tiktoken.get_encoding(name)
    except Exception as error:  # the exceptions of the HTTP library, and a hash that does not agree
        raise ClipModelsError(
            f"tiktoken cannot fetch its encoding {name!r} ({type(error).__name__}); connect to the internet once,"
            f" or give the file {name}.tiktoken as tokenizer.name"
        ) from error


def _from_file(tiktoken: Any, path: Path) -> Any:
    import base64
    from binascii import Error

    from tiktoken_ext.openai_public import r50k_pat_str

    if path.stem in tiktoken.list_encoding_names() and path.stem != "r50k_base":
        raise ClipModelsError(f"{path.name} needs the splitting of words of tiktoken; name it {path.stem!r}")
    try:
        pairs = [line.split() for line in path.read_bytes().splitlines() if line]
        ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in pairs}
    except OSError as error:
        raise ClipModelsError(f"{str(path)!r} cannot be read: {error.strerror}") from error
    except (ValueError, Error) as error:
        raise ClipModelsError(f"{str(path)!r} is not a .tiktoken file of tokens in base64 and ids") from error
    if sorted(ranks.values()) != list(range(len(ranks))) or any(bytes([byte]) not in ranks for byte in range(256)):
        raise ClipModelsError(f"{str(path)!r} is damaged: a .tiktoken file has every byte, and ids without gaps")
    return tiktoken.Encoding(path.stem, pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens={})
