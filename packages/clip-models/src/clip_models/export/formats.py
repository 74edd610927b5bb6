"""The registry of export formats, and their common interface. Free of torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from clip_core import Registry

if TYPE_CHECKING:
    from torch import Tensor, nn

    from clip_models.model import CLIP

FORMATS: Registry[Any] = Registry(
    "export format",
    {
        "onnx": "clip_models.export.graphs:OnnxFormat",
        "torch-export": "clip_models.export.graphs:ProgramFormat",
        "hf": "clip_models.export.folders:HuggingFaceFormat",
        "open-clip": "clip_models.export.folders:OpenCLIPFormat",
    },
)
"""Subclasses of `ExportFormat`."""


@dataclass(frozen=True, kw_only=True)
class ExportInput:
    """The model to write, in the precision of the export."""

    model: CLIP
    image_tower: nn.Module
    """float32 [B, 3, H, W] → float32 [B, E]"""
    text_tower: nn.Module
    """int64 [B, L] → float32 [B, E]"""
    images: Tensor
    """Two inputs of the image tower: in a trace a batch of one would be a constant."""
    captions: Tensor
    """Two inputs of the text tower."""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """The exported form, for the self-check."""

    run_image: Callable[[Tensor], Tensor]
    run_text: Callable[[Tensor], Tensor]
    runtime: str
    """Name and version of what runs it."""


class ExportFormat:
    """Base of the formats; made anew for each export."""

    refused: ClassVar[Mapping[str, str]] = {}
    """Precisions that are not supported, each with the reason."""
    is_graph: ClassVar[bool] = False
    """The towers alone are written: normalisation can be put into them, and the preprocessing is written beside."""

    def write(self, folder: Path, source: ExportInput) -> Exported:
        """Writes the model into an existing folder. Raises ClipModelsError if it cannot be exported."""
        raise NotImplementedError

    def add_metadata(self, folder: Path, metadata: Mapping[str, str]) -> None:
        """Adds the description of a checked export to the written files, if the format supports it."""
