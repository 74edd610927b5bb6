"""Training of the image tower as a classifier."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from clip_train.errors import ClipTrainError
from clip_train.tasks import ExtraFile, TaskConfig
from clip_train.tasks.labels import LabelsConfig

if TYPE_CHECKING:
    from torch import Tensor

    from clip_models import CLIP, ModelSpec
    from clip_train.parallel import World
    from clip_train.tasks.base import Task

CLASSES = "clip_train.classes"
"""metadata of a classifier.safetensors: the names of the classes, in JSON"""


@dataclass(frozen=True, kw_only=True)
class ClassificationConfig(TaskConfig):
    """Cross entropy of a linear classifier on the normalised image features. The text tower is not trained.

    With `model.lock.image` only the classifier is trained (a linear probe). Without it, and with the
    classifier.safetensors of such a run in `classifier`, the tower is fine-tuned (LP-FT, Kumar et al. 2022).
    """

    labels: LabelsConfig = field(default_factory=LabelsConfig)
    """classes of the samples"""
    classifier: str = "prompts"
    """first weights: prompts, the text features of the classes times the scale of the logits; zeros; or a
    classifier.safetensors that a run has written"""

    def check(self, spec: ModelSpec) -> None:
        self.labels.check()
        if self.classifier not in ("prompts", "zeros") and not self.classifier.endswith(".safetensors"):
            raise ClipTrainError(
                f"task.classifier = {self.classifier!r} must be prompts, zeros, or a classifier.safetensors"
            )

    def complete(self, model: CLIP, about: Mapping[str, Any]) -> None:
        from clip_train.tasks.classifier import add_classifier

        add_classifier(model, len(about["classes"]))

    def separate(self, weights: dict[str, Tensor], about: Mapping[str, Any]) -> dict[str, ExtraFile]:
        tensors = {"weight": weights.pop("classifier.weight")}
        return {"classifier": ExtraFile(tensors, {CLASSES: json.dumps(about["classes"])})}

    def build(self, model: CLIP, *, precision: str, world: World) -> Task:
        from clip_train.tasks.classifier import ClassifierTask

        return ClassifierTask(model, self, precision=precision, world=world)
