"""The number formats of training, apart from autocast, which a task enters itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from clip_models.extras import require
from clip_models.towers.products import Linear
from clip_train.errors import ClipTrainError
from clip_train.optim.config import SpikeConfig
from clip_train.optim.guard import VERDICT, Guard
from clip_train.parallelize.shards import local

_LEAST_SCALE = 2.0**-10  # below it gradients overflow for another reason
_LEAST_FP8 = (8, 9)  # compute capability of CUDA: Ada Lovelace, Hopper and newer


def convert(module: nn.Module, blocks: Iterable[nn.Module], precision: str, device: torch.device) -> None:
    """Converts the weights as the precision says, in place. Raises ClipTrainError if the device cannot compute it."""
    if precision == "pure_bf16":
        _to_bfloat16(module)
    elif precision == "fp8":
        capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)
        if capability < _LEAST_FP8:
            raise ClipTrainError(
                f"train.precision = 'fp8' needs a CUDA device of compute capability 8.9 or more, and {device} is none: "
                "choose train.precision = 'bf16'"
            )
        to_float8(blocks)


def _to_bfloat16(module: nn.Module) -> None:
    for name, layer in module.named_modules():
        if isinstance(layer, _BatchNorm):
            raise ClipTrainError(
                f"train.precision = 'pure_bf16' loses the small updates of the statistics of batch norms ({name}): "
                "choose train.precision = 'bf16'"
            )
    scalars = [parameter for parameter in module.parameters() if parameter.ndim == 0]
    kept = [scalar.detach().clone() for scalar in scalars]
    module.to(torch.bfloat16)
    for scalar, value in zip(scalars, kept, strict=True):
        scalar.data = value  # the scale of the logits has more digits than bfloat16


def to_float8(blocks: Iterable[nn.Module], *, emulate: bool = False) -> int:
    """Makes the linear layers of the blocks multiply in float8, with one scale for each tensor. Returns their number.

    Layers whose sizes 16 does not divide stay as they are, because the hardware cannot multiply them. `emulate`
    computes the same in float32, on any device. Source: Micikevicius et al. 2022, arXiv 2209.05433.
    """
    float8 = require("torchao.float8", "quantize", "train.precision = 'fp8'")
    options = float8.Float8LinearConfig(emulate=emulate)
    converted = 0
    for block in blocks:
        fitting = {
            name
            for name, layer in block.named_modules()
            if name and type(layer) in (nn.Linear, Linear) and not (layer.in_features % 16 or layer.out_features % 16)
        }
        converted += len(fitting)
        float8.convert_to_float8_training(
            block, config=options, module_filter_fn=lambda _, name, fitting=fitting: name in fitting
        )
    if not converted:
        raise ClipTrainError(
            "train.precision = 'fp8' would change nothing: the blocks have no linear layers whose sizes 16 divides; "
            "choose train.precision = 'bf16'"
        )
    return converted


class LossScale:
    """The factor on the loss that keeps the gradients of float16 above its smallest number (Micikevicius et al. 2018).

    It halves after a step whose gradient overflows, and doubles after `interval` steps without one. All of it stays on
    the device.
    """

    def __init__(self, device: torch.device, *, start: float = 2.0**16, interval: int = 2000) -> None:
        self.value = torch.tensor(start, device=device)
        self._interval = interval
        self._streak = torch.zeros((), dtype=torch.int64, device=device)

    def unscale(self, parameters: Sequence[nn.Parameter]) -> None:
        """Divides the gradients by the factor."""
        factor = 1 / self.value
        grads = [local(parameter.grad) for parameter in parameters if parameter.grad is not None]
        for device in {grad.device for grad in grads}:
            torch._foreach_mul_([grad for grad in grads if grad.device == device], factor.to(device))

    def update(self, overflow: Tensor) -> None:
        """Takes into account whether the gradient of the step, a bool scalar, has overflowed."""
        self._streak = torch.where(overflow, 0, self._streak + 1)
        grown = self._streak >= self._interval
        self._streak = torch.where(grown, 0, self._streak)
        risen = torch.where(grown, self.value * 2, self.value)
        self.value = torch.where(overflow, self.value / 2, risen)

    def state(self) -> dict[str, Tensor]:
        """Returns the factor and the number of steps since it changed."""
        return {"scale": self.value, "streak": self._streak}

    def load_state(self, tensors: Mapping[str, Any]) -> None:
        """Restores what `state` returned."""
        self.value, self._streak = (tensors[name].to(self.value.device) for name in ("scale", "streak"))


class ScaledGuard(Guard):
    """Leaves out a step whose scaled gradient overflows, and lowers the scale, instead of ending the run."""

    def __init__(self, config: SpikeConfig, device: torch.device, scale: LossScale) -> None:
        super().__init__(config, device)
        self._scale = scale

    def judge(self, loss: Tensor, norm: Tensor) -> Tensor:
        overflow = loss.isfinite() & ~norm.isfinite() & (self._scale.value > _LEAST_SCALE)
        before = self._window, self._streak, self._over
        good = super().judge(loss, norm)
        after = self._window, self._streak, self._over
        self._window, self._streak, self._over = (
            torch.where(overflow, old, new) for old, new in zip(before, after, strict=True)
        )
        self._verdict["overflow"] = overflow
        self._scale.update(overflow)
        return good

    def settle(self, step: int, loss: float, norm: float, lr: float, values: dict[str, float]) -> bool:
        if not values[f"{VERDICT}overflow"]:
            return super().settle(step, loss, norm, lr, values)
        for name in self.verdict():
            del values[name]
        return False
