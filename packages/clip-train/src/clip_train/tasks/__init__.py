"""Tasks: what a run trains a model for. Each kind is a config in a file of this folder; `[task] kind` chooses one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from clip_core.config import Variant
from clip_core.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor

    from clip_models import CLIP, ModelSpec
    from clip_train.parallel import World
    from clip_train.tasks.base import Task

TASKS: Registry[type[TaskConfig]] = Registry(
    "task",
    {
        "contrastive": "clip_train.tasks.contrastive:ContrastiveConfig",
        "siglip": "clip_train.tasks.siglip:SigLIPConfig",
        "global": "clip_train.tasks.global_contrastive:GlobalContrastiveConfig",
        "coca": "clip_train.tasks.coca:CoCaConfig",
        "distillation": "clip_train.tasks.distillation:DistillationConfig",
        "flyp": "clip_train.tasks.flyp:FLYPConfig",
        "classification": "clip_train.tasks.classification:ClassificationConfig",
    },
)


class ExtraFile(NamedTuple):
    """A safetensors file that is written beside exported weights."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class TaskConfig(Variant):
    """Base of the configs of all tasks. Their modules do not import torch, except inside `build`."""

    KINDS = TASKS
    DEFAULT = "contrastive"

    reads_weights: ClassVar[bool] = True
    """whether a task may read or change the weights of its model before the first step, other than scalars; if not,
    those of a sharded model are drawn later"""

    def check(self, spec: ModelSpec) -> None:
        """Raises ClipError for a value that is not valid, or a model that was made for another objective.

        Requires neither torch nor the data.
        """

    def chance(self, spec: ModelSpec, samples: int) -> float | None:
        """Returns the loss of a model that cannot tell the `samples` of a batch apart; None if it is not known."""
        return None

    def weights(self) -> dict[str, tuple[str, str]]:
        """Returns (source, architecture) of the weights that the task loads, by key. Their digests identify the run."""
        return {}

    def complete(self, model: CLIP, about: Mapping[str, Any]) -> None:
        """Adds to a model what the task trains beside it. `about` is `Task.about` of the checkpoint to be loaded."""

    def separate(self, weights: dict[str, Tensor], about: Mapping[str, Any]) -> dict[str, ExtraFile]:
        """Removes from exported weights what is no part of the architecture; returns it as files by name."""
        return {}

    def build(self, model: CLIP, *, precision: str, world: World) -> Task:
        """Returns the task for a model that `check` accepts. `precision`: fp32, or bf16 for autocast."""
        raise NotImplementedError
