"""The implementation of tasks with a teacher."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from clip_models import CLIP, ModelSpec
from clip_train.errors import ClipTrainError
from clip_train.losses.distillation import distillation_loss
from clip_train.parallel import World
from clip_train.synthetic import SyntheticConfig
from clip_train.tasks.base import Batch, Normalise, Tensors
from clip_train.tasks.dual_encoder import DualEncoderTask
from clip_train.tasks.stored import StoredEmbeddings

if TYPE_CHECKING:
    from clip_data.stream import Manifest
    from clip_train.tasks.distillation import DistillationConfig


class DistillationTask(DualEncoderTask):
    """Trains a student on the pairs and on a teacher's similarities of all pairs, of all ranks.

    A batch has the teacher's features, "teacher_image" and "teacher_text", [B, E] each.
    """

    @property
    def teacher_scale(self) -> Tensor:
        """The factor on the teacher's cosines, a scalar."""
        raise NotImplementedError

    def __init__(self, model: CLIP, config: DistillationConfig, *, precision: str, world: World) -> None:
        super().__init__(model, config, precision=precision, world=world)
        self._config = config

    def losses_of(
        self, features: Tensors, shared: Tensors, batch: Batch, *, ranks: int, step: int | None = None
    ) -> Tensors:
        """Returns {"contrastive_loss", "distillation_loss"}, means over the pairs times their weights."""
        losses = super().losses_of(features, shared, batch, ranks=ranks, step=step)
        distilled = distillation_loss(
            features["image"],
            features["text"],
            shared["scale"],
            batch["teacher_image"],
            batch["teacher_text"],
            self.teacher_scale,
            ranks=ranks,
            temperature=self._config.temperature,
        )
        return {
            "contrastive_loss": self._config.contrastive_weight * losses["contrastive_loss"],
            "distillation_loss": self._config.distillation_weight * distilled,
        }


class TeacherTask(DistillationTask):
    """The teacher computes its features in every step.

    The stream decodes images at the larger of both sizes; each model gets them at its own, by antialiased bicubic
    resizing on the device, so both see the same crop. Captions are tokenised once for each tokenizer. The teacher is in
    eval mode, has no gradient, and is not part of the checkpoints.
    """

    def __init__(self, model: CLIP, teacher: CLIP, config: DistillationConfig, *, precision: str, world: World) -> None:
        super().__init__(model, config, precision=precision, world=world)
        self._teacher = teacher.to(world.device).eval().requires_grad_(False)
        self._normalise_teacher = Normalise(teacher.spec.preprocess, world.device)

    @property
    def teacher_scale(self) -> Tensor:
        return self._teacher.logit_scale.detach().exp()

    @property
    def text_specs(self) -> list[ModelSpec]:
        return [self.model.spec, self._teacher.spec]

    @property
    def image_size(self) -> tuple[int, int]:
        return max(
            self.model.spec.preprocess.size, self._teacher.spec.preprocess.size, key=lambda size: size[0] * size[1]
        )

    @property
    def texts(self) -> dict[str, CLIP]:
        return {**super().texts, "teacher_tokens": self._teacher}

    def tensors(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Takes tokens of both tokenizers side by side; the teacher's become "teacher_tokens"."""
        length = self.model.spec.text.context_length
        own, others = batch["text"][:, :length], batch["text"][:, length:]
        return {**super().tensors({**batch, "text": own}), "teacher_tokens": torch.from_numpy(others)}

    @torch.no_grad()
    def targets(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the teacher's features, "teacher_image" and "teacher_text", float32 [B, E]."""
        image = self._normalise_teacher(batch["image"])
        with self.autocast():
            features = {
                "teacher_image": self._teacher.encode_image(image),
                "teacher_text": self._teacher.encode_text(batch["teacher_tokens"]),
            }
        return self.normalised(features)


class StoredTeacherTask(DistillationTask):
    """The features of the teacher are embeddings on disk, of the images without augmentation."""

    needs_samples = True

    def __init__(
        self, model: CLIP, stored: StoredEmbeddings, config: DistillationConfig, *, precision: str, world: World
    ) -> None:
        super().__init__(model, config, precision=precision, world=world)
        self._stored = stored

    @property
    def teacher_scale(self) -> Tensor:
        return torch.tensor(self._stored.logit_scale, device=self.world.device)

    def start(self, manifest: Manifest | SyntheticConfig, held_out: Manifest | None, *, batch_size: int) -> None:
        if isinstance(manifest, SyntheticConfig):
            raise ClipTrainError("task.teacher_embeddings has none of data.synthetic: name a live task.teacher")
        self._stored.join([manifest, *([held_out] if held_out else [])])

    def tensors(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Adds the embeddings, float32."""
        image, text = (torch.from_numpy(found).float() for found in self._stored.find(batch["uid"]))
        return {**super().tensors(batch), "teacher_image": image, "teacher_text": text}
