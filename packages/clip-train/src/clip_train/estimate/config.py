"""The flags of `clip-train fit --dry-run`. This module does not import torch."""

from __future__ import annotations

from dataclasses import dataclass

from clip_core.suggest import did_you_mean
from clip_train.errors import ClipTrainError
from clip_train.hardware import devices


@dataclass(frozen=True, kw_only=True)
class Machines:
    """The devices that a run is estimated for."""

    device: str = "h100"
    """kind of device: a name of the table in clip_train/devices.toml"""
    devices: int = 1
    """number of devices, each with a rank of its own"""
    mfu: float = 0.4
    """share of the device's peak FLOP/s that the run is expected to reach"""
    price: float = 0.0
    """price of one device for one hour; 0 leaves the cost out"""

    def check(self, batch_size: int, micro_batches: int) -> None:
        """Raises ClipTrainError for a value that is not valid."""
        if self.device not in devices():
            hint = did_you_mean(self.device, devices(), f"the devices are {', '.join(devices())}")
            raise ClipTrainError(f"device = {self.device!r} is not in the table; {hint}")
        if self.devices < 1:
            raise ClipTrainError(f"devices = {self.devices} must be at least 1")
        if not 0 < self.mfu <= 1:
            raise ClipTrainError(f"mfu = {self.mfu} must be above 0 and at most 1")
        if self.price < 0:
            raise ClipTrainError(f"price = {self.price} must be at least 0")
        if batch_size % (self.devices * micro_batches):
            raise ClipTrainError(
                f"train.batch_size = {batch_size} is not divisible by {self.devices} devices with "
                f"train.micro_batches = {micro_batches}"
            )
