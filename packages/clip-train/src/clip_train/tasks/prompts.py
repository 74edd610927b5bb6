"""The implementation of contrastive tasks whose captions are prompts of classes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from clip_models import CLIP, ModelSpec, get_tokenizer
from clip_train.parallel import World
from clip_train.tasks.dual_encoder import DualEncoderTask
from clip_train.tasks.labels import ClassLabels

if TYPE_CHECKING:
    from clip_data.stream import Manifest
    from clip_train.tasks.flyp import FLYPConfig


class PromptTask(DualEncoderTask):
    """Trains on images with prompts of their classes, drawn by the sample and its epoch alone."""

    def __init__(self, model: CLIP, config: FLYPConfig, *, precision: str, world: World) -> None:
        super().__init__(model, config, precision=precision, world=world)
        self._column = config.labels.column
        self._labels = ClassLabels(config.labels)
        self._tokens: np.ndarray
        """int64 [prompts, context], of all classes one after another"""
        self._bounds: np.ndarray
        """int64 [classes + 1]: where the prompts of each class begin"""

    @property
    def text_specs(self) -> list[ModelSpec]:
        return []  # the captions of the dataset are not used

    def start(self, manifest: Manifest, held_out: Manifest | None, *, batch_size: int) -> None:
        super().start(manifest, held_out, batch_size=batch_size)
        self._labels.read(manifest, *([held_out] if held_out else []))
        self._bounds = np.cumsum([0, *map(len, self._labels.prompts)])
        self._tokens = self._labels.tokens(get_tokenizer(self.model.spec))

    def tensors(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Puts a prompt of its class in the place of each caption."""
        classes = self._labels.numbers(batch[self._column])
        draws = [draw(uid, epoch) for uid, epoch in zip(batch["uid"], batch["epoch"].tolist(), strict=True)]
        picked = np.array(draws, np.int64) % np.diff(self._bounds)[classes]
        return super().tensors({**batch, "text": self._tokens[self._bounds[classes] + picked]})


def draw(uid: str, epoch: int) -> int:
    """Returns a random number of 63 bits that depends on the sample and the epoch alone."""
    return int.from_bytes(hashlib.blake2b(f"prompt\0{epoch}\0{uid}".encode(), digest_size=8).digest()) >> 1
