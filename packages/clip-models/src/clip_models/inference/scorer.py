"""A scorer for datasets of clip-data: the similarity of images and captions. Neither package imports the other."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

from clip_core.files import sha256_of
from clip_models.errors import ClipModelsError

if TYPE_CHECKING:
    import pyarrow as pa
    from PIL import Image

    from clip_models.inference.encoder import Encoder

_ALGORITHM = 1  # raised when this module gives other numbers for the same model


class SampleBatch(Protocol):
    """The input of `score`: samples in row order and their images."""

    @property
    def samples(self) -> pa.Table: ...

    @property
    def images(self) -> Sequence[Image.Image]: ...


@dataclass(frozen=True, kw_only=True)
class ClipScorer:
    """Cosine of an image and its caption under a CLIP model, in the column `clip_similarity`; a scorer of clip-data.

    An empty caption gives null. The model is not pickled: each process loads it once, for its first batch.
    """

    model: str
    """name of the architecture, or hf-hub:org/repo, or local-dir:folder"""
    pretrained: str = ""
    """tag or file of the weights"""
    quick_gelu: bool = False
    """the weights were trained with QuickGELU"""
    precision: str = "fp32"
    """of the model; the cosine is computed in fp32"""
    batch_size: int = 64
    """samples in one batch of the model"""
    device: str = "auto"
    """cpu, cuda, …; auto is the accelerator if there is one"""
    embeddings: bool = False
    """add the columns image_embedding and text_embedding"""
    name: str = "clip"
    """of the column set; choose one for each model to keep several"""
    caption_column: str = "caption"
    """column of the samples that holds the caption"""

    def __post_init__(self) -> None:
        from clip_models.inference.encoder import require_weights

        require_weights(self.model, self.pretrained)
        if not self.name.isidentifier():
            raise ClipModelsError(f"scorer name {self.name!r} must be an identifier, as in clip_b32")
        if self.batch_size < 1:
            raise ClipModelsError(f"batch_size {self.batch_size} must be positive")

    @property
    def needs_image(self) -> bool:
        return True

    @property
    def version(self) -> int:
        """A number that differs for other contents of the weights, and for other options that change the scores."""
        options = {key: value for key, value in asdict(self).items() if key not in ("batch_size", "device", "name")}
        for name in ("model", "pretrained"):
            path = options[name].removeprefix("local-dir:")
            if os.path.exists(path):
                options[name] = _digest(path)
        text = json.dumps([_ALGORITHM, options], sort_keys=True)
        return int(hashlib.sha256(text.encode()).hexdigest()[:12], 16)

    @property
    def schema(self) -> pa.Schema:
        import pyarrow as pa

        fields = [("clip_similarity", pa.float32())]
        if self.embeddings:
            kind = pa.list_(pa.float32(), self._encoder.spec.embed_dim)
            fields += [("image_embedding", kind), ("text_embedding", kind)]
        return pa.schema(fields)

    def score(self, batch: SampleBatch) -> pa.Table:
        """Returns a table of `schema`, one row per sample."""
        import numpy as np
        import pyarrow as pa

        if self.caption_column not in batch.samples.schema.names:
            known = ", ".join(batch.samples.schema.names)
            raise ClipModelsError(f"the samples have no column {self.caption_column!r}; they have {known}")
        captions = [caption or "" for caption in batch.samples.column(self.caption_column).to_pylist()]
        image_ND, text_ND = self._features(batch.images, captions)
        absent = np.array([not caption.strip() for caption in captions], dtype=bool)
        cosines = (image_ND * text_ND).sum(axis=1, dtype=np.float32)
        columns: dict[str, Any] = {"clip_similarity": pa.array(cosines, mask=absent)}
        if self.embeddings:
            columns["image_embedding"] = _vectors(image_ND, np.zeros_like(absent))
            columns["text_embedding"] = _vectors(text_ND, absent)
        return pa.table(columns, schema=self.schema)

    def _features(self, images: Sequence[Image.Image], captions: Sequence[str]) -> tuple[Any, Any]:
        """Returns unit vectors of the images and of the captions: two float32 [N, D]."""
        import numpy as np

        encoder = self._encoder
        empty = np.empty((0, encoder.spec.embed_dim), np.float32)
        image, text = [empty], [empty]
        for start in range(0, len(captions), self.batch_size):
            rows = slice(start, start + self.batch_size)
            image.append(encoder.encode_images(images[rows]).cpu().numpy())
            text.append(encoder.encode_texts(captions[rows]).cpu().numpy())
        return np.concatenate(image), np.concatenate(text)

    @property
    def _encoder(self) -> Encoder:
        return _load(self.model, self.pretrained, self.precision, self.device, self.quick_gelu)


@functools.lru_cache(maxsize=2)
def _load(model: str, pretrained: str, precision: str, device: str, quick_gelu: bool) -> Encoder:
    from clip_models.inference.encoder import Encoder

    return Encoder.load(model, pretrained, precision, device, quick_gelu=quick_gelu)


def _digest(path: str) -> list[str]:
    """Returns the hashes of a file, or of the files of a folder, with their names."""
    files = [path] if os.path.isfile(path) else sorted(entry.path for entry in os.scandir(path) if entry.is_file())
    names = [] if files == [path] else [os.path.basename(file) for file in files]
    return names + [_file_digest(file, (s := os.stat(file)).st_size, s.st_mtime_ns) for file in files]


@functools.lru_cache(maxsize=64)
def _file_digest(path: str, size: int, mtime_ns: int) -> str:
    return sha256_of(path)


def _vectors(array_ND: Any, absent: Any) -> pa.Array:
    import pyarrow as pa

    return pa.FixedSizeListArray.from_arrays(pa.array(array_ND.reshape(-1)), array_ND.shape[1], mask=pa.array(absent))
