"""SigLIP's tokenizers: a sentencepiece model, an end token, and padding to the full context."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clip_models.errors import ClipModelsError
from clip_models.extras import require
from clip_models.specs import ModelSpec
from clip_models.tokenizers.base import Tokenizer, require_strings
from clip_models.tokenizers.cleaning import clean_caption
from clip_models.weights import hub

FILES = {
    "c4-en": ("google/siglip-base-patch16-224", "spiece.model"),
    "mc4": ("google/siglip-base-patch16-256-multilingual", "spiece.model"),
    "gemma": ("google/siglip2-base-patch16-224", "tokenizer.model"),
}
"""Repository on the hub and file of the named models: English, multilingual, SigLIP 2."""


class SigLipTokenizer(Tokenizer):
    """Captions → token ids: the caption's tokens, end, padding. There is no start token.

    `name`: c4-en, mc4, gemma, or a sentencepiece model file. SigLIP was trained with the end token as padding, SigLIP 2
    (whose vocabulary has a start token) with its own padding. Raises ClipModelsError.
    """

    own_cleaning = "canonicalize"
    eot_token_id: int = 1

    def __init__(
        self,
        name: str | os.PathLike[str],
        context_length: int = 64,
        clean: str = "canonicalize",
        *,
        cache_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__(context_length, clean)
        self.name = os.fspath(name)
        library = require("sentencepiece", "hf", f"the tokenizer {self.name!r}")
        path = hub.download_file(*FILES[self.name], cache_dir=cache_dir) if self.name in FILES else Path(self.name)
        if not path.is_file():
            raise ClipModelsError(
                f"there is no sentencepiece model at {str(path)!r}; give a file or {', '.join(FILES)}"
            )
        self._model: Any = library.SentencePieceProcessor()
        try:
            self._model.LoadFromSerializedProto(path.read_bytes())
        except (RuntimeError, OSError) as error:
            raise ClipModelsError(f"{str(path)!r} is not a sentencepiece model") from error
        if self._model.eos_id() != self.eot_token_id:
            raise ClipModelsError(
                f"the end token of {str(path)!r} is {self._model.eos_id()}, not 1 as in SigLIP's models"
            )
        self.pad_token_id = self._model.pad_id() if self._model.bos_id() >= 0 else self.eot_token_id

    @classmethod
    def from_spec(cls, spec: ModelSpec, context_length: int, clean: str, cache_dir: Any = None) -> "SigLipTokenizer":
        return cls(spec.tokenizer.name, context_length, clean, cache_dir=cache_dir)

    @property
    def vocab_size(self) -> int:
        return int(self._model.GetPieceSize())

    def encode(self, text: str) -> list[int]:
        return self._ids(require_strings([text]))[0]

    def save(self, folder: Path) -> list[str]:
        """Writes the model, and for SigLIP a config for transformers, which gives other ids for SigLIP 2."""
        (folder / "spiece.model").write_bytes(self._model.serialized_model_proto())
        if self.pad_token_id != self.eot_token_id:
            return ["spiece.model"]
        names = {"pad_token": "</s>", "eos_token": "</s>", "unk_token": "<unk>"}
        config = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0, "model_max_length": self.context_length, **names}
        (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
        return ["spiece.model", "tokenizer_config.json"]

    def _rows(self, texts: Sequence[str], length: int | None) -> list[list[int]]:
        room = None if length is None else length - 1
        return [[*ids[:room], self.eot_token_id] for ids in self._ids(texts)]

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        # Lone surrogates have no UTF-8.
        cleaned = [clean_caption(text, self.clean).encode("utf-8", "replace").decode() for text in texts]
        return self._model.EncodeAsIds(cleaned) if cleaned else []

    def _decode(self, ids: list[int]) -> str:
        # The library leaves control tokens out; the other tokenizers do not.
        parts: list[str] = []
        run: list[int] = []
        for i in ids:
            if self._model.IsControl(i):
                parts += [self._model.DecodeIds(run), self._model.IdToPiece(i)]
                run = []
            else:
                run.append(i)
        return "".join([*parts, self._model.DecodeIds(run)])
