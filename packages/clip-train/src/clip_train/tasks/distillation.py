"""Contrastive training of a dual encoder that also learns the similarities of a trained model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from clip_models.specs import list_models
from clip_train.errors import ClipTrainError
from clip_train.tasks.contrastive import ContrastiveConfig

if TYPE_CHECKING:
    from clip_models import CLIP, ModelSpec
    from clip_train.parallel import World
    from clip_train.tasks.base import Task


@dataclass(frozen=True, kw_only=True)
class DistillationConfig(ContrastiveConfig):
    """Contrastive training with a teacher, of any architecture and with its own tokenizer and preprocessing."""

    teacher: str = ""
    """the teacher: an architecture, or a whole model such as hf-hub:org/repo, local-dir:/folder or a file"""
    teacher_pretrained: str = ""
    """a tag or a weights file of the teacher's architecture"""
    teacher_embeddings: str = ""
    """in place of a teacher: a folder of its embeddings of all samples, held-out ones too, that clip-models embed has
    written with --what both --format npy"""
    contrastive_weight: float = 1.0
    """factor on the loss of the pairs"""
    distillation_weight: float = 1.0
    """factor on the cross entropy of the teacher's similarities and the student's"""
    temperature: float = 1.0
    """divides the similarities of teacher and student in that cross entropy (Hinton et al. 2015)"""

    def check(self, spec: ModelSpec) -> None:
        super().check(spec)
        if not self.teacher and not self.teacher_embeddings:
            raise ClipTrainError(
                "task.teacher is empty: name the model to learn from, or its embeddings in task.teacher_embeddings"
            )
        if self.teacher_embeddings and (self.teacher or self.teacher_pretrained):
            raise ClipTrainError(
                f"task.teacher_embeddings = {self.teacher_embeddings!r} takes the place of task.teacher = "
                f"{self.teacher!r} and its weights: give one of them"
            )
        if self.teacher in list_models() and not self.teacher_pretrained:
            raise ClipTrainError(
                f"task.teacher = {self.teacher!r} is an architecture: name its weights in task.teacher_pretrained"
            )
        if self.temperature <= 0:
            raise ClipTrainError(f"task.temperature = {self.temperature} must be above 0")
        for name, value in (("contrastive", self.contrastive_weight), ("distillation", self.distillation_weight)):
            if value < 0:
                raise ClipTrainError(f"task.{name}_weight = {value} must be at least 0")

    def weights(self) -> dict[str, tuple[str, str]]:
        if self.teacher_pretrained:
            return {"teacher_pretrained": (self.teacher_pretrained, self.teacher)}
        return {"teacher": (self.teacher, "")} if self.teacher else {}

    def chance(self, spec: ModelSpec, samples: int) -> float | None:
        """Returns ln N for each part, times its weight. The teacher's own entropy is the least that one can reach."""
        pairs = super().chance(spec, samples)
        weight = self.contrastive_weight + self.distillation_weight * self.temperature**2
        return None if pairs is None else weight * pairs

    def build(self, model: CLIP, *, precision: str, world: World) -> Task:
        from clip_models import create_model
        from clip_train.model import weights_of
        from clip_train.tasks.stored import StoredEmbeddings
        from clip_train.tasks.teacher import StoredTeacherTask, TeacherTask

        if self.teacher_embeddings:
            stored = StoredEmbeddings(self.teacher_embeddings)
            return StoredTeacherTask(model, stored, self, precision=precision, world=world)
        weights = weights_of(self.teacher_pretrained)
        teacher = create_model(self.teacher, require_pretrained=bool(weights), **weights)
        return TeacherTask(model, teacher, self, precision=precision, world=world)
