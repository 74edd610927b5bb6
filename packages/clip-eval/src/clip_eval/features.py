"""Features: each dataset and each list of texts is embedded once and then read from a file.

The fingerprint of all that decides the numbers is the name of the file. The SHA-256 of the model file covers its
preprocessing and tokenizer. The batch size is not part of it: it can only change the last bits of a feature, and scores
are computed from what is stored.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from clip_core.config import fingerprint
from clip_core.console import progress_bar
from clip_core.files import sha256_of
from clip_core.store import Store
from clip_data.stream import Manifest, read_once
from clip_eval.errors import ClipEvalError
from clip_eval.scores import normalize

if TYPE_CHECKING:
    from clip_models import CLIP, ModelSpec
    from clip_models.tokenizers import Tokenizer

STRINGS = ("caption", "key", "sha256", "uid")
NUMERIC_MODULES = [f"{name}.py" for name in ("features", "intervals", "labels", "metrics", "scores")]
NUMERIC_MODULES += [f"benchmarks/{name}.py" for name in ("__init__", "retrieval", "zeroshot")]


@dataclass(frozen=True, kw_only=True)
class ImageFeatures:
    """One dataset, embedded: N samples in manifest order."""

    features: np.ndarray
    """float32 [N, D], unit vectors."""
    strings: dict[str, list[str]]
    """uid, key, caption and sha256 (hex, of the fetched bytes); N each, "" for a null."""
    corrupt: int
    """Samples that could not be read and are left out."""


@dataclass(frozen=True, kw_only=True)
class TextFeatures:
    """A list of N texts, embedded."""

    features: np.ndarray
    """float32 [N, D], unit vectors."""
    truncated: int
    """Texts that were cut at the model's context length."""


def code_version() -> str:
    """Returns a digest of the modules that decide the numbers and of the versions of the packages that they call."""
    digest = hashlib.blake2b(digest_size=8)
    for name in NUMERIC_MODULES:
        digest.update((files("clip_eval") / name).read_bytes())
    for package in ("clip-core", "clip-data", "clip-models", "torch"):
        digest.update(f"{package} {version(package)}\n".encode())
    return digest.hexdigest()


def check_corrupt(corrupt: float, manifest: Manifest, limit: float) -> None:
    """Raises ClipEvalError when more than a share `limit` of a manifest's samples cannot be read."""
    if corrupt / manifest.samples > limit:
        raise ClipEvalError(
            f"at least {corrupt:,} of the {manifest.samples:,} samples of {manifest.parts[0].source.dataset} cannot be "
            f"read, more than max_corrupt = {limit:g} allows: run 'clip-data verify --deep' on it, or raise max_corrupt"
        )


class Embedder:
    """Features of a model in memory. A subclass may spread the work, or keep the results."""

    @property
    def model(self) -> CLIP:
        """The model, in evaluation mode."""
        raise NotImplementedError

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        from clip_models import get_tokenizer

        return get_tokenizer(self.model.spec)

    def images(self, manifest: Manifest, *, precision: str, batch_size: int, max_corrupt: float) -> ImageFeatures:
        """Embeds each sample once. Raises ClipEvalError as soon as more than `max_corrupt` cannot be read."""

        def embed() -> dict[str, np.ndarray]:
            features, strings, corrupt = self._embed_images(manifest, precision, batch_size, max_corrupt)
            check_corrupt(corrupt, manifest, max_corrupt)
            if not len(features):
                raise ClipEvalError(
                    f"none of the {manifest.samples} samples could be decoded: run 'clip-data verify --deep'"
                )
            return {
                "features": normalize(features),
                "corrupt": np.asarray([corrupt], np.int64),
                "strings": np.frombuffer(json.dumps(strings).encode(), np.uint8),
            }

        found = self._kept(embed, what="images", precision=precision, manifest=manifest.fingerprint)
        corrupt = int(found["corrupt"].item())
        check_corrupt(corrupt, manifest, max_corrupt)
        strings = json.loads(found["strings"].tobytes())
        return ImageFeatures(features=found["features"], strings=strings, corrupt=corrupt)

    def texts(self, texts: Sequence[str], *, precision: str, batch_size: int) -> TextFeatures:
        """Embeds texts, in their order. Texts with the same tokens are embedded once and have the same features."""

        def embed() -> dict[str, np.ndarray]:
            ids = self._tokenizer.encode_numpy(list(texts))
            known: dict[bytes, int] = {}
            row_of = [known.setdefault(row.tobytes(), len(known)) for row in ids]
            rows = ids[np.unique(row_of, return_index=True)[1]]
            truncated = np.asarray([self._tokenizer.count_truncated(list(texts))], np.int64)
            return {
                "features": normalize(self._embed_tokens(rows, precision, batch_size))[row_of],
                "truncated": truncated,
            }

        digest = hashlib.sha256("\0".join(texts).encode()).hexdigest()
        found = self._kept(embed, what="texts", precision=precision, texts=digest)
        return TextFeatures(features=found["features"], truncated=int(found["truncated"].item()))

    def _embed_images(
        self, manifest: Manifest, precision: str, batch_size: int, max_corrupt: float
    ) -> tuple[np.ndarray, dict[str, list[str]], int]:
        """Returns (float32 [N, D] in manifest order, the strings of the samples, number of corrupt ones)."""
        samples = read_once(manifest, batch_size=batch_size, **reading(self.model.spec))
        parts: list[np.ndarray] = []
        strings: dict[str, list[str]] = {key: [] for key in STRINGS}
        with progress_bar(total=manifest.samples, unit=" images", desc="embed images") as bar:
            for batch in samples:
                parts.append(self._encode(batch["image"], precision))
                for key, values in strings_of(batch).items():
                    strings[key] += values
                bar.update(len(batch["uid"]))
                check_corrupt(samples.stats["corrupt"], manifest, max_corrupt)
        return np.concatenate(parts) if parts else np.empty((0, 0)), strings, int(samples.stats["corrupt"])

    def _embed_tokens(self, rows: np.ndarray, precision: str, batch_size: int) -> np.ndarray:
        """Returns float32 [M, D] for tokens, int64 [M, context]."""
        parts = []
        with progress_bar(total=len(rows), unit=" texts", desc="embed texts") as bar:
            for start in range(0, len(rows), batch_size):
                parts.append(self._encode(rows[start : start + batch_size], precision))
                bar.update(len(parts[-1]))
        return np.concatenate(parts)

    def _encode(self, batch: np.ndarray, precision: str) -> np.ndarray:
        """Returns float32 [B, D] for images, uint8 [B, 3, H, W], or for tokens, int64 [B, context]."""
        import torch

        model = self.model
        device = model.logit_scale.device
        inputs = torch.from_numpy(batch).to(device)
        with (
            torch.inference_mode(),
            torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"),
            torch.backends.cudnn.flags(allow_tf32=precision != "fp32"),
        ):
            if batch.ndim == 2:
                return model.encode_text(inputs).float().cpu().numpy()
            preprocess = model.spec.preprocess
            mean, std = (
                torch.tensor(values, device=device)[:, None, None] for values in (preprocess.mean, preprocess.std)
            )
            return model.encode_image((inputs.float() / 255 - mean) / std).float().cpu().numpy()

    def _kept(self, embed: Callable[[], dict[str, np.ndarray]], **key: Any) -> dict[str, np.ndarray]:
        """Returns the arrays of `embed`, which the values of `key` decide together with the model."""
        return embed()


class FileEmbedder(Embedder):
    """Features of the model of a file, which is loaded when the first feature is missing; they are kept in a folder."""

    def __init__(self, model: str, store: Store) -> None:
        self.path = model
        self.store = store

    @cached_property
    def file(self) -> str:
        """The model on this machine: of one at a URL, a copy."""
        if "://" not in self.path:
            return self.path
        from clip_models.weights.download import download_pretrained_from_url

        return str(download_pretrained_from_url(self.path))

    @cached_property
    def model_sha256(self) -> str:
        """Identifies the weights, the architecture, the preprocessing and the tokenizer."""
        try:
            return sha256_of(self.file)
        except OSError as error:
            raise ClipEvalError(
                f"cannot read the model {self.path!r}: {error.strerror}; give --model the model.safetensors of a run"
            ) from error

    @cached_property
    def model(self) -> CLIP:
        import torch

        from clip_models import load_model

        return load_model(self.file, device="cuda" if torch.cuda.is_available() else "cpu")[0].eval()

    def _kept(self, embed: Callable[[], dict[str, np.ndarray]], **key: Any) -> dict[str, np.ndarray]:
        """Returns the arrays of a file, which is named by all that decides them, or makes and stores them."""
        name = f"features/{fingerprint({'model': self.model_sha256, 'code': code_version(), **key})}.safetensors"
        if not self.store.exists(name):
            arrays = embed()
            self.store.write_bytes(name, save(arrays))
            return arrays
        try:
            return load(self.store.read_bytes(name))
        except SafetensorError as error:
            raise ClipEvalError(f"{self.store.url}/{name} is damaged: remove it and run again ({error})") from error


def reading(spec: ModelSpec) -> dict[str, Any]:
    """Returns the arguments of `read_once` for the images of a model."""
    return {
        "preprocess": {**spec.preprocess.to_dict(), "augment": None},
        "tokenizer": None,
        "columns": ("key", "sha256"),
    }


def strings_of(batch: Mapping[str, Any]) -> dict[str, list[str]]:
    """Returns the strings of the samples of a batch, as `ImageFeatures` has them."""
    return {key: [_text(value) for value in batch["text" if key == "caption" else key]] for key in STRINGS}


def _text(value: Any) -> str:
    if value is None:
        return ""
    return value.hex() if isinstance(value, bytes) else str(value)
