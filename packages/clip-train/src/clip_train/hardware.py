"""What devices can do. This module does not import torch."""

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """A kind of device, in FLOP/s and bytes."""

    low: float
    """peak of dense products in bf16 and fp16"""
    fp32: float
    """peak of products in float32, without TF32"""
    memory: float
    names: tuple[str, ...] = ()
    """names that torch.cuda.get_device_name gives it"""


@cache
def devices() -> dict[str, Hardware]:
    """Returns the known kinds of devices by name."""
    table = tomllib.loads(Path(__file__).with_name("devices.toml").read_text(encoding="utf-8"))
    return {name: Hardware(**{**row, "names": tuple(row.get("names", ()))}) for name, row in table.items()}
