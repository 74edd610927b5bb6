"""The exports that are folders of weights for another library, checked by reading them again."""

from collections.abc import Callable
from pathlib import Path

import torch

from clip_models.export.formats import Exported, ExportFormat, ExportInput
from clip_models.export.towers import ImageGraph, TextGraph
from clip_models.factory import create_model
from clip_models.model import CLIP
from clip_models.weights.convert.folders import save_huggingface, save_open_clip


class HuggingFaceFormat(ExportFormat):
    """A folder of transformers."""

    save: Callable[[Path, CLIP], None] = staticmethod(save_huggingface)

    def write(self, folder: Path, source: ExportInput) -> Exported:
        self.save(folder, source.model)
        again = create_model(f"local-dir:{folder}").eval()
        return Exported(
            run_image=ImageGraph(again, pixels_inside=False, l2_inside=False),
            run_text=TextGraph(again, l2_inside=False),
            runtime=f"torch {torch.__version__}, from the folder",
        )


class OpenCLIPFormat(HuggingFaceFormat):
    """open_clip_config.json and safetensors."""

    save = staticmethod(save_open_clip)
