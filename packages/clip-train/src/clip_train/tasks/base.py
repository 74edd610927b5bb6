"""The interface between the training loop and a task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor, nn


class Task(Protocol):
    """A model with the losses that train it."""

    @property
    def model(self) -> nn.Module:
        """The bare module whose parameters are trained and saved."""

    def prepare(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Moves a batch of the stream to the device."""

    def losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns scalar losses of a prepared batch. `loss` is minimised and is the same on every rank."""

    def evaluate(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Returns the loss of a prepared batch of this rank alone, in evaluation mode and without a gradient."""

    def report(self) -> dict[str, float]:
        """Returns numbers to log beside the losses."""

    def after_step(self) -> None:
        """Applies constraints on the parameters after each optimizer step."""
