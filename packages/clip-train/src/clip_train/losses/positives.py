"""Which samples of a batch are positives of each other: groups, for the losses that take them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


def caption_groups(text: Tensor) -> Tensor:
    """Returns int64 [B], equal for captions with equal tokens: a 63-bit hash of each row of int64 [B, L].

    The rows have the whole context, so that the hash does not depend on the rank. That any two of the N captions of a
    batch share a hash by accident has the probability N² / 2^64.
    """
    places = torch.arange(1, text.shape[1] + 1, device=text.device)
    return _mixed(_mixed(text * 0x9E3779B1 + places * 0x1000193C4F).sum(1)) & (2**63 - 1)


def value_groups(values: Iterable[Any]) -> Tensor:
    """Returns int64 [B], equal for equal values of a column; −1, which stands alone, for None."""
    return torch.tensor([-1 if value is None else _number(value) for value in values], dtype=torch.int64)


def _number(value: Any) -> int:
    return int.from_bytes(hashlib.blake2b(repr(value).encode(), digest_size=8).digest(), "little") >> 1


def _mixed(x: Tensor) -> Tensor:
    """Applies the finaliser of MurmurHash3 (Appleby 2011) to int64 values; products wrap around."""
    x = (x ^ ((x >> 33) & 0x7FFFFFFF)) * -0x00AE502812AA7333
    x = (x ^ ((x >> 33) & 0x7FFFFFFF)) * -0x3B314601E57A13AD
    return x ^ ((x >> 33) & 0x7FFFFFFF)
