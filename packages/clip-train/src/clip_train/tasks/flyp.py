"""Contrastive fine-tuning on class prompts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from clip_train.tasks.contrastive import ContrastiveConfig
from clip_train.tasks.labels import LabelsConfig

if TYPE_CHECKING:
    from clip_models import CLIP, ModelSpec
    from clip_train.parallel import World
    from clip_train.tasks.base import Task


@dataclass(frozen=True, kw_only=True)
class FLYPConfig(ContrastiveConfig):
    """Fine-tunes like it was pretrained (FLYP, Goyal et al. 2023): the caption of an image is a prompt of its class.

    `positives` = "pair" is the paper's definition, in which other images of the same class count as negatives. The
    name of the label column makes them positives.
    """

    labels: LabelsConfig = field(default_factory=LabelsConfig)
    """classes of the samples"""

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((self.labels.column, *super().columns)))

    def check(self, spec: ModelSpec) -> None:
        super().check(spec)
        self.labels.check()

    def build(self, model: CLIP, *, precision: str, world: World) -> Task:
        from clip_train.tasks.prompts import PromptTask

        return PromptTask(model, self, precision=precision, world=world)
