"""Features: each dataset and each list of texts is embedded once and then read from a file.

The fingerprint of all that decides the numbers is the name of the file. The SHA-256 of the model file covers its
preprocessing and tokenizer. The batch size is not part of it: it can only change the last bits of a feature, and scores
are computed from what is stored.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np

from clip_core.config import fingerprint
from clip_core.console import progress_bar
from clip_core.files import sha256_of
from clip_core.store import Store
from clip_eval.errors import ClipEvalError
from clip_eval.scores import normalize

if TYPE_CHECKING:
    from clip_data.stream import Manifest
    from clip_models import CLIP, ModelSpec
    from clip_models.tokenizers import Tokenizer

STRINGS = ("caption", "key", "sha256", "uid")
NUMERIC_MODULES = (
    *("features.py", "intervals.py", "labels.py", "metrics.py", "scores.py"),
    *(f"benchmarks/{name}.py" for name in ("base", "classification", "ranking", "retrieval", "zeroshot")),
)


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


def check_corrupt(corrupt: int, manifest: Manifest, limit: float) -> None:
    """Raises ClipEvalError when more than a share `limit` of a manifest's samples cannot be read."""
    if corrupt / manifest.samples > limit:
        raise ClipEvalError(
            f"at least {corrupt:,} of the {manifest.samples:,} samples of {manifest.parts[0].source.dataset} cannot be "
            f"read, more than max_corrupt = {limit:g} allows: run 'clip-data verify --deep' on it, or raise max_corrupt"
        )


class Embedder:
    """Features of one model, which is loaded when the first feature is missing."""

    def __init__(self, model: str, store: Store) -> None:
        self.path = model
        self.store = store

    @cached_property
    def model_sha256(self) -> str:
        """Identifies the weights, the architecture, the preprocessing and the tokenizer."""
        try:
            return sha256_of(self.path)
        except OSError as error:
            raise ClipEvalError(
                f"cannot read the model {self.path!r}: {error.strerror}; give --model the model.safetensors of a run"
            ) from error

    @cached_property
    def _loaded(self) -> tuple[CLIP, ModelSpec, Tokenizer, str]:
        import torch

        from clip_models import get_tokenizer, load_model

        device = "cuda" if torch.cuda.is_available() else "cpu"
        model, spec = load_model(self.path, device=device)
        return model.eval(), spec, get_tokenizer(spec), device

    def images(self, manifest: Manifest, *, precision: str, batch_size: int, max_corrupt: float) -> ImageFeatures:
        """Embeds each sample once. Raises ClipEvalError as soon as more than `max_corrupt` cannot be read."""
        from clip_data.stream import read_once

        name = self._name("images", precision, manifest=manifest.fingerprint)
        if self.store.exists(name):
            tensors = self._read(name)
            corrupt = int(tensors["corrupt"].reshape(()))
            check_corrupt(corrupt, manifest, max_corrupt)
            strings = json.loads(tensors["strings"].tobytes())
            return ImageFeatures(features=tensors["features"], strings=strings, corrupt=corrupt)
        spec = self._loaded[1]
        samples = read_once(
            manifest,
            preprocess={**spec.preprocess.to_dict(), "augment": None},
            tokenizer=None,
            batch_size=batch_size,
            workers=0,
            columns=("key", "sha256"),
        )
        parts: list[np.ndarray] = []
        strings = {key: [] for key in STRINGS}
        with progress_bar(total=manifest.samples, unit=" images", desc="embed images") as bar:
            for batch in samples:
                parts.append(self._encode_images(batch["image"], precision))
                for key, values in strings.items():
                    values += map(_text, batch["text" if key == "caption" else key])
                bar.update(len(batch["uid"]))
                check_corrupt(int(samples.stats["corrupt"]), manifest, max_corrupt)
        corrupt = int(samples.stats["corrupt"])
        check_corrupt(corrupt, manifest, max_corrupt)
        if not parts:
            raise ClipEvalError(
                f"none of the {manifest.samples} samples could be decoded: run 'clip-data verify --deep'"
            )
        features = normalize(np.concatenate(parts))
        packed = np.frombuffer(json.dumps(strings).encode(), np.uint8)
        self._write(name, {"features": features, "corrupt": np.asarray([corrupt], np.int64), "strings": packed})
        return ImageFeatures(features=features, strings=strings, corrupt=corrupt)

    def texts(self, texts: Sequence[str], *, precision: str, batch_size: int) -> TextFeatures:
        """Embeds texts, in their order. Texts with the same tokens are embedded once and have the same features."""
        name = self._name("texts", precision, texts=hashlib.sha256("\0".join(texts).encode()).hexdigest())
        if self.store.exists(name):
            tensors = self._read(name)
            return TextFeatures(features=tensors["features"], truncated=int(tensors["truncated"].reshape(())))
        tokenizer = self._loaded[2]
        distinct: dict[bytes, np.ndarray] = {}
        order = []
        for start in range(0, len(texts), batch_size):
            for ids in tokenizer.encode_numpy(list(texts[start : start + batch_size])):
                order.append(ids.tobytes())
                distinct.setdefault(order[-1], ids)
        row_of, rows, parts = {key: row for row, key in enumerate(distinct)}, list(distinct.values()), []
        with progress_bar(total=len(rows), unit=" texts", desc="embed texts") as bar:
            for start in range(0, len(rows), batch_size):
                parts.append(self._encode_texts(np.stack(rows[start : start + batch_size]), precision))
                bar.update(len(parts[-1]))
        features = normalize(np.concatenate(parts))[[row_of[key] for key in order]]
        truncated = tokenizer.count_truncated(list(texts))
        self._write(name, {"features": features, "truncated": np.asarray([truncated], np.int64)})
        return TextFeatures(features=features, truncated=truncated)

    def _encode_images(self, image: np.ndarray, precision: str) -> np.ndarray:
        """Returns float32 [B, D] for uint8 [B, 3, H, W]."""
        import torch

        model, spec, _, device = self._loaded
        mean, std = (
            torch.tensor(values, device=device).view(3, 1, 1) for values in (spec.preprocess.mean, spec.preprocess.std)
        )
        pixels = (torch.from_numpy(image).to(device).float() / 255 - mean) / std
        with _inference(device, precision):
            return model.encode_image(pixels).float().cpu().numpy()

    def _encode_texts(self, ids: np.ndarray, precision: str) -> np.ndarray:
        """Returns float32 [B, D] for int64 [B, context]."""
        import torch

        model, _, _, device = self._loaded
        with _inference(device, precision):
            return model.encode_text(torch.from_numpy(ids).to(device)).float().cpu().numpy()

    def _name(self, what: str, precision: str, **key: Any) -> str:
        parts = {"what": what, "model": self.model_sha256, "precision": precision, "code": code_version(), **key}
        return f"features/{fingerprint(parts)}.safetensors"

    def _read(self, name: str) -> dict[str, np.ndarray]:
        from safetensors import SafetensorError
        from safetensors.numpy import load

        try:
            return load(self.store.read_bytes(name))
        except SafetensorError as error:
            raise ClipEvalError(f"{self.store.url}/{name} is damaged: remove it and run again ({error})") from error

    def _write(self, name: str, tensors: dict[str, np.ndarray]) -> None:
        from safetensors.numpy import save

        self.store.write_bytes(name, save(tensors))


@contextmanager
def _inference(device: str, precision: str) -> Iterator[None]:
    """Turns off gradients and sets the arithmetic: bf16 by autocast, fp32 without TF32."""
    import torch

    with (
        torch.inference_mode(),
        torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"),
        torch.backends.cudnn.flags(allow_tf32=precision != "fp32"),
    ):
        yield


def _text(value: Any) -> str:
    if value is None:
        return ""
    return value.hex() if isinstance(value, bytes) else str(value)
