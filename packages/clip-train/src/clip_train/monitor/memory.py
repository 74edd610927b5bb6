"""The memory that a rank has used."""

from __future__ import annotations

import resource

import torch

MIB = 2**20


def peak_memory(device: torch.device) -> dict[str, float]:
    """Returns MiB: `host_memory_mib`, the peak of the process, and on CUDA `device_memory_mib`.

    The latter is the most that tensors have held since the last call.
    """
    found = {"host_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
    if device.type == "cuda":
        found["device_memory_mib"] = torch.cuda.max_memory_allocated(device) / MIB
        torch.cuda.reset_peak_memory_stats(device)
    return found
