"""The implementation of tasks with a running normaliser for every sample."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from clip_models import CLIP
from clip_train.errors import ClipTrainError
from clip_train.losses.exchange import Exchange
from clip_train.losses.global_contrastive import NEVER, global_contrastive_loss
from clip_train.losses.table import SampleTable
from clip_train.parallel import World
from clip_train.tasks.base import Batch, Tensors
from clip_train.tasks.dual_encoder import TowersTask
from clip_train.tasks.global_contrastive import VERSIONS, GlobalContrastiveConfig

if TYPE_CHECKING:
    from clip_data.stream import Manifest
    from clip_train.synthetic import SyntheticConfig

SIDES = ("image", "text")


class NormalisedTask(TowersTask):
    """Trains both towers on an estimate of the contrastive loss over all samples.

    A table holds float32 numbers for the image and the caption of each sample: the logarithm of the normaliser and,
    with individual temperatures, the temperature and its momentum: 8 or 24 bytes, shared out over the ranks. The state
    belongs to the samples of the manifest, so ranks and restarts do not change it. An update of the weights that is
    left out (`optim.spike`) leaves the normalisers that its batch has given: they belong to the weights as they are.
    """

    needs_samples = True

    def __init__(self, model: CLIP, config: GlobalContrastiveConfig, *, precision: str, world: World) -> None:
        super().__init__(model, config, precision=precision, world=world)
        self._config, self._temperature = config, VERSIONS[config.version].temperature
        self._table: SampleTable | None = None
        self._samples = self._batch_size = 0

    def start(self, manifest: Manifest | SyntheticConfig, held_out: Manifest | None, *, batch_size: int) -> None:
        if batch_size < 2:
            raise ClipTrainError(f"train.batch_size = {batch_size} must be at least 2 for task.kind = 'global'")
        self._samples, self._batch_size = manifest.samples, batch_size
        initial = {"log_u": NEVER}
        if self._temperature == "individual":
            initial |= {"temperature": float(self.model.logit_scale.detach().neg().exp()), "momentum": 0.0}
        names = {f"{side}_{name}": value for name, value in initial.items() for side in SIDES}
        self._table = SampleTable(self.world, manifest.samples, names)

    @property
    def parts(self) -> Mapping[str, SampleTable]:
        return {} if self._table is None else {"samples": self._table}

    def losses_of(
        self, features: Tensors, shared: Tensors, batch: Batch, *, ranks: int, step: int | None = None
    ) -> Tensors:
        """Returns {"contrastive_loss": the estimate of the loss over all samples}.

        An evaluation has the normalisers of its batch alone, and the temperature of the model.
        """
        inputs = features["image"], features["text"], shared["scale"]
        options: dict[str, Any] = {
            "eps": self._config.eps,
            "rho": 0.0 if self._temperature == "fixed" else self._config.rho,
        }
        if step is None:
            never = torch.full((2, ranks * len(inputs[0])), NEVER, device=inputs[0].device)
            return {"contrastive_loss": global_contrastive_loss(*inputs, never, gamma=1, ranks=ranks, **options).loss}
        if self._table is None:
            raise ClipTrainError("the task has not been started: call Task.start with the samples of the run")
        ordinals_N = Exchange(ranks).gather(batch["ordinal"])
        numbers = self._table.read(ordinals_N)
        gamma = self._config.gamma_at(step * self._batch_size // self._samples)
        tau_2N = numbers[2:4] if self._temperature == "individual" else None
        found = global_contrastive_loss(*inputs, numbers[:2], tau_2N, gamma=gamma, ranks=ranks, **options)
        values = found.log_u_2N
        if found.slope_2N is not None:
            momentum = self._config.temperature_momentum
            speed_2N = numbers[4:6].lerp(found.slope_2N, 1 - momentum)
            moved_2N = numbers[2:4] - self._config.temperature_lr * speed_2N
            values = torch.cat([values, moved_2N.clamp(1 / self._scale.max, 1.0), speed_2N])
        self._table.write(ordinals_N, values)
        return {"contrastive_loss": found.loss}
