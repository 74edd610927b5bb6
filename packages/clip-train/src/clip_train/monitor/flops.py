"""The floating-point operations of a step, and the rate that a device can reach: their ratio is the MFU."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from clip_models import CLIP
from clip_models.inference.profiling import profile
from clip_train.hardware import devices

SIDE = {"cpu": 1024, "cuda": 8192}  # of the matrices whose product is measured
REPEATS = 5
ENOUGH_S = 0.3  # of measuring: a CPU that emulates a precision is slow


@dataclass(frozen=True, kw_only=True)
class StepFlops:
    """Operations of a training step, by the method of PaLM's appendix B (Chowdhery et al. 2022).

    Forward passes are counted on the meta device (`clip_models.inference.profiling`). The backward pass of a trained
    tower counts twice its forward pass, that of a locked one nothing. What is computed a second time to save memory is
    not counted, nor are the loss, norms, activations, the optimizer, or a teacher. Patches that are dropped and columns
    of captions that are cut count in proportion, which neglects that attention falls with their square.
    """

    image: float
    """of one image, with dropped patches"""
    text: float
    """of one caption of the whole context, with the decoder of a CoCa"""
    context: int

    @classmethod
    def of(cls, model: CLIP) -> StepFlops:
        """Counts the operations of a model, as it is trained. Raises ClipModelsError if they cannot be counted."""
        counted = profile(model.spec)
        kept = 1 - getattr(model.spec.vision, "patch_dropout", 0.0)
        trains_image = any(p.requires_grad for p in model.visual.parameters())
        trains_text = any(
            p.requires_grad for name, p in model.named_parameters() if not name.startswith(("visual.", "logit_"))
        )
        image = counted.image_gflops * 1e9 * kept
        text = (counted.gflops - counted.image_gflops) * 1e9
        return cls(
            image=image * (3 if trains_image else 1),
            text=text * (3 if trains_text else 1),
            context=model.spec.text.context_length,
        )

    def of_samples(self, samples: int, columns: float) -> float:
        """Returns the operations for a number of samples whose captions have so many columns."""
        return samples * (self.image + self.text * columns / self.context)


@dataclass(frozen=True, kw_only=True)
class Utilisation:
    """Shares of the rate that the devices of a run can reach (model FLOPs utilisation, MFU)."""

    flops: StepFlops
    peak: float
    """operations that all devices together can do in a second"""
    source: str
    """where `peak` is from: config, table or measured"""

    def share(self, samples: int, columns: float, seconds: float) -> float:
        """Returns the share that was used for a number of samples whose captions had so many columns on average."""
        return self.flops.of_samples(samples, columns) / (seconds * self.peak)


def utilisation(model: CLIP, device: torch.device, *, precision: str, devices: int, peak_tflops: float) -> Utilisation:
    """Counts a model, and looks up or measures the device unless `peak_tflops` says its rate."""
    peak, source = (peak_tflops * 1e12, "config") if peak_tflops else peak_flops(device, precision)
    return Utilisation(flops=StepFlops.of(model), peak=devices * peak, source=source)


def peak_flops(device: torch.device, precision: str) -> tuple[float, str]:
    """Returns the operations that the device can do in a second, and where the number is from: table or measured."""
    kind = "fp32" if precision == "fp32" else "low"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    if known := next((each for each in devices().values() if name in each.names), None):
        return getattr(known, kind), "table"
    side, dtype = SIDE[device.type], torch.float32 if kind == "fp32" else torch.bfloat16
    left, right = (torch.full((side, side), 0.5, device=device, dtype=dtype) for _ in range(2))
    times = [_seconds(left, right)]
    while len(times) < REPEATS and sum(times) < ENOUGH_S:
        times.append(_seconds(left, right))
    return 2 * side**3 / min(times), "measured"


def _seconds(left: torch.Tensor, right: torch.Tensor) -> float:
    if left.device.type == "cuda":
        torch.cuda.synchronize(left.device)
    began = time.perf_counter()
    left @ right
    if left.device.type == "cuda":
        torch.cuda.synchronize(left.device)
    return time.perf_counter() - began
