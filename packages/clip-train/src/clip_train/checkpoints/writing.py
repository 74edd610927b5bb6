"""Copies a rank's share of the tensors to host memory, and writes it to a file whose hash is computed on the way."""

from __future__ import annotations

import hashlib
from typing import IO, Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.planner import SavePlan

from clip_core.store import Store
from clip_models.weights.tensorfiles import dump_safetensors
from clip_train.checkpoints.planning import piece_name


class Stage:
    """Copies of tensors in host memory, which the next save uses again: new memory costs more than the copy."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}
        self._copied: torch.cuda.Event | None = None

    def copy(self, plan: SavePlan, tensors: dict[str, Tensor]) -> None:
        """Starts to copy the pieces of a plan. Training may change the tensors after the return."""
        kept, self._buffers = self._buffers, {}
        for item in plan.items:
            data = item.tensor_data
            assert data is not None
            whole = tensors[item.index.fqn].detach()
            local = whole.to_local() if hasattr(whole, "to_local") else whole
            name = piece_name(item.index.fqn, tuple(data.chunk.offsets), tuple(data.chunk.sizes), tuple(data.size))
            buffer = kept.get(name)
            if buffer is None or buffer.shape != local.shape or buffer.dtype != local.dtype:
                # pinned, so that a copy from an accelerator does not wait for it
                buffer = torch.empty(local.shape, dtype=local.dtype, pin_memory=local.is_cuda)
            self._buffers[name] = buffer.copy_(local, non_blocking=True)
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            self._copied = torch.cuda.Event()
            self._copied.record()

    def write(self, store: Store, name: str) -> dict[str, Any]:
        """Writes the copies to a safetensors file. Returns its entry in state.json."""
        if self._copied is not None:
            self._copied.synchronize()
        with store.trying("write", name), store.writing(name) as file:
            hashed = _Hashed(file)
            dump_safetensors(hashed, self._buffers, {})
        return {"bytes": hashed.bytes, "sha256": hashed.sha256.hexdigest()}


class _Hashed:
    """A file that counts and hashes what is written."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.sha256, self.bytes = file, hashlib.sha256(), 0

    def write(self, data: Any) -> int:
        self.sha256.update(data)
        self.bytes += len(data)
        return self._file.write(data)
