"""Contrastive training of a dual encoder."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from clip_train.errors import ClipTrainError
from clip_train.losses import LOSSES
from clip_train.tasks import TaskConfig
from clip_train.tasks.temperature import LogitScaleConfig

if TYPE_CHECKING:
    from clip_models import CLIP, ModelSpec
    from clip_train.parallel import World
    from clip_train.tasks.base import Task


@dataclass(frozen=True, kw_only=True)
class TowersConfig(TaskConfig):
    """What all tasks that train an image and a text tower share."""

    logit_scale: LogitScaleConfig = field(default_factory=LogitScaleConfig)
    """the factor on the cosines"""

    def check(self, spec: ModelSpec) -> None:
        self.logit_scale.check()
        for tower in ("vision", "text"):
            part = getattr(spec, tower)
            if getattr(part, "pool_type", "") == "none" and not getattr(part, "attentional_pool", False):
                raise ClipTrainError(
                    f"model.name = {spec.name!r} does not fit this task, which needs one vector for each image and "
                    f"caption: {tower}.pool_type = 'none' returns all tokens"
                )

    def initialise(self, model: CLIP) -> None:
        """Sets the scale of the logits, and which of the parameters beside the towers are trained."""
        self.logit_scale.apply(model)

    def refuse_unused(self, spec: ModelSpec) -> None:
        """Raises ClipTrainError for a model with a decoder or a bias, which would not be trained."""
        unused = ""
        if spec.decoder is not None:
            unused = "a CoCa, and its decoder would not be trained; choose task.kind = 'coca'"
        elif spec.init_logit_bias is not None:
            unused = "made for the sigmoid loss, and its logit_bias would be ignored; choose task.kind = 'siglip'"
        if unused:
            raise ClipTrainError(f"model.name = {spec.name!r} does not fit this task: it is {unused}")


@dataclass(frozen=True, kw_only=True)
class PairConfig(TowersConfig):
    """What all tasks with a loss of pairs share."""

    loss: str
    """the loss of the pairs: a registered name, or package.module:function"""
    matryoshka: tuple[int, ...] = ()
    """channels of the features that have to suffice alone, such as [64, 256, 512] (Kusupati et al. 2022)"""
    positives: str = "pair"
    """positives of a sample: pair, its own pair alone; captions, also pairs with the same caption; or a column of the
    dataset, such as a cluster of duplicates ("sha256", or "set.column" of a scorer), also those with the same value"""

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the dataset that the task needs."""
        return () if self.positives in ("pair", "captions") else (self.positives,)

    def check(self, spec: ModelSpec) -> None:
        super().check(spec)
        LOSSES.check(self.loss)
        if not self.positives:
            raise ClipTrainError("task.positives is empty: choose pair, captions, or a column of the dataset")
        dims, width = self.matryoshka, spec.embed_dim
        if len(set(dims)) != len(dims) or not all(0 < channels <= width for channels in dims):
            raise ClipTrainError(f"task.matryoshka = {list(dims)} must be distinct numbers from 1 to {width}")

    def make_loss(self) -> Callable[..., Any]:
        """Returns the loss of the pairs with its options. Raises ClipTrainError for one that it does not take."""
        raise NotImplementedError

    def pair_loss(self, **options: Any) -> Callable[..., Any]:
        """Returns the loss with these options. Raises ClipTrainError for an option that it does not take."""
        from clip_train.losses.matryoshka import matryoshka

        loss = LOSSES.get(self.loss)
        try:
            grouped = {} if self.positives == "pair" else {"groups": None}
            inspect.signature(loss).bind_partial(**options, **grouped)
        except TypeError as error:
            raise ClipTrainError(f"task.loss = {self.loss!r} does not take what the task sets: {error}") from error
        loss = partial(loss, **options)
        return matryoshka(loss, self.matryoshka) if self.matryoshka else loss


@dataclass(frozen=True, kw_only=True)
class ContrastiveConfig(PairConfig):
    """Image-text contrastive training (CLIP, Radford et al. 2021)."""

    reads_weights = False

    loss: str = "contrastive"
    """the loss of the pairs: a registered name, or package.module:function"""
    label_smoothing: float = 0.0
    """share of the target that is spread over all samples of the batch"""
    logits: Literal["fp32", "bf16"] = "fp32"
    """bf16 is OpenCLIP's arithmetic under autocast: faster, and the gradient is right to about 1 % only"""

    def check(self, spec: ModelSpec) -> None:
        super().check(spec)
        if not 0 <= self.label_smoothing <= 1:
            raise ClipTrainError(f"task.label_smoothing = {self.label_smoothing} must be in [0, 1]")
        if self.loss == "sigmoid":
            raise ClipTrainError("task.loss = 'sigmoid' trains a bias of the logits: choose task.kind = 'siglip'")
        self.check_model(spec)

    def check_model(self, spec: ModelSpec) -> None:
        """Raises ClipTrainError for a model with parts that this task does not train."""
        self.refuse_unused(spec)

    def make_loss(self) -> Callable[..., Any]:
        # A user-defined loss knows none of these options; it gets those that the config changes.
        given = {"label_smoothing": self.label_smoothing, "logits": self.logits}
        return self.pair_loss(**{name: value for name, value in given.items() if value not in (0, "fp32")})

    def chance(self, spec: ModelSpec, samples: int) -> float | None:
        """Returns ln N, the cross entropy of equal similarities, whatever the targets and their smoothing are."""
        return math.log(samples) if self.loss == "contrastive" else None

    def build(self, model: CLIP, *, precision: str, world: World) -> Task:
        from clip_train.tasks.dual_encoder import DualEncoderTask

        return DualEncoderTask(model, self, precision=precision, world=world)
