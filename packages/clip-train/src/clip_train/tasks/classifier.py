"""The implementation of classification."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip_core import ClipError
from clip_models import CLIP, ModelSpec, get_tokenizer
from clip_models.weights.tensorfiles import read_tensors
from clip_train.errors import ClipTrainError
from clip_train.losses.caption import caption_loss
from clip_train.parallel import World
from clip_train.tasks.base import Batch, Outputs, Task, Tensors
from clip_train.tasks.classification import CLASSES
from clip_train.tasks.labels import ClassLabels

if TYPE_CHECKING:
    from clip_data.stream import Manifest
    from clip_train.synthetic import SyntheticConfig
    from clip_train.tasks.classification import ClassificationConfig


class ClassifierTask(Task):
    """Trains the image tower and `model.classifier`, a linear layer without a bias from features to classes."""

    needs_samples = True

    def __init__(self, model: CLIP, config: ClassificationConfig, *, precision: str, world: World) -> None:
        super().__init__(model, precision=precision, world=world)
        self._config = config
        self.columns = (config.labels.column,)
        self._labels = ClassLabels(config.labels)

    @property
    def about(self) -> dict[str, Any]:
        return {"classes": self._labels.names}

    @property
    def text_specs(self) -> list[ModelSpec]:
        return []

    def start(self, manifest: Manifest | SyntheticConfig, held_out: Manifest | None, *, batch_size: int) -> None:
        self._labels.read(manifest, held_out)
        self._classifier = add_classifier(self.model, len(self._labels.names))
        with torch.no_grad():
            self._classifier.weight.copy_(self._first_weights())

    @property
    def texts(self) -> dict[str, CLIP]:
        return {}

    def tensors(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Returns images and "label", int64 [B], the number of the class; captions are not used."""
        tensors = super().tensors({**batch, "text": np.zeros((len(batch["image"]), 0), np.int64)})
        del tensors["text"]
        return {**tensors, "label": torch.from_numpy(self._labels.numbers(batch[self._config.labels.column]))}

    def tokens(self, tensors: Mapping[str, Tensor]) -> int:
        return 0

    def with_counts(self, batch: Batch) -> Mapping[str, Tensor]:
        """Adds "samples", int64 [B], the same for all samples: the samples of the batches of all ranks."""
        samples = len(batch["label"]) * self.world.size
        return {**batch, "samples": torch.full_like(batch["label"], samples)}

    def forward(self, image: Tensor, batch: Batch) -> Outputs:
        features = F.normalize(self.model.encode_image(image).float(), dim=-1)
        with torch.autocast(features.device.type, enabled=False):
            logits = self._classifier(features)
        training = "samples" in batch
        # As for a caption of one token: the mean over the samples of all ranks and micro-batches.
        loss = caption_loss(
            logits[:, None],
            batch["label"][:, None],
            ignore=-1,
            count=batch["samples"][0] if training else None,
            ranks=self.world.size if training else 1,
        )
        return Outputs({}, {}, {"classification_loss": loss})

    def losses_of(
        self, features: Tensors, shared: Tensors, batch: Batch, *, ranks: int, step: int | None = None
    ) -> Tensors:
        return {}

    def report(self) -> dict[str, Tensor]:
        return {}

    @torch.no_grad()
    def after_step(self) -> None:
        pass

    @torch.no_grad()
    def _first_weights(self) -> Tensor:
        """Returns float32 [classes, channels]."""
        names, width = self._labels.names, self.model.spec.embed_dim
        if self._config.classifier == "zeros":
            return torch.zeros(len(names), width)
        if self._config.classifier == "prompts":
            tokens = self._labels.tokens(get_tokenizer(self.model.spec))
            self.model.eval()
            features = F.normalize(
                self.model.encode_text(torch.from_numpy(tokens).to(self.world.device)).float(), dim=-1
            )
            self.model.train()
            means = [part.mean(0) for part in features.split([*map(len, self._labels.prompts)])]
            return F.normalize(torch.stack(means), dim=-1) * self.model.logit_scale.float().exp()
        return read_classifier(self._config.classifier, names, width)


def add_classifier(model: CLIP, classes: int) -> nn.Linear:
    """Adds `model.classifier`, a linear layer from the features to the classes, and freezes all but the image tower."""
    for name, parameter in model.named_parameters():
        if not name.startswith("visual."):
            parameter.requires_grad_(False)
    device = model.logit_scale.device
    model.classifier = layer = nn.Linear(model.spec.embed_dim, classes, bias=False, device=device)
    return layer


def read_classifier(file: str, names: list[str], width: int) -> Tensor:
    """Returns the weights of a classifier.safetensors, float32 [classes, width].

    Raises ClipTrainError unless it has these classes in this order, and features of this width.
    """
    try:
        tensors, metadata = read_tensors(Path(file))
        weight: Tensor = tensors["weight"]
        classes = json.loads(metadata[CLASSES])
    except (ClipError, KeyError, ValueError) as error:
        raise ClipTrainError(f"task.classifier = {file!r} is not a classifier of clip-train: {error}") from error
    if classes != names:
        differs = next((one for one in [*classes, *names] if one not in names or one not in classes), "their order")
        raise ClipTrainError(
            f"task.classifier = {file!r} has other classes than the labels ({differs!r}): set task.labels.classes to "
            "those of the run that wrote it"
        )
    if weight.shape != (len(names), width):
        raise ClipTrainError(
            f"task.classifier = {file!r} is for features of {weight.shape[1]} channels, and the model has {width}: "
            "use the architecture that it was trained with"
        )
    return weight.float()
