"""User-defined export formats: one file of weights, and one whose text tower is wrong."""

from pathlib import Path

from clip_models import load_model, save_model
from clip_models.export.formats import Exported, ExportFormat, ExportInput
from clip_models.export.towers import ImageGraph, TextGraph


class OneFile(ExportFormat):
    """A file of weights that clip-models loads."""

    def write(self, folder: Path, source: ExportInput) -> Exported:
        save_model(folder / "weights.safetensors", source.model, source.model.spec)
        again, _ = load_model(folder / "weights.safetensors")
        again.eval()
        return Exported(
            run_image=ImageGraph(again, pixels_inside=False, l2_inside=False),
            run_text=TextGraph(again, l2_inside=False),
            runtime="clip-models",
        )


class Mirrored(OneFile):
    """Its text features have the wrong sign."""

    def write(self, folder: Path, source: ExportInput) -> Exported:
        right = super().write(folder, source)
        return Exported(run_image=right.run_image, run_text=lambda ids: -right.run_text(ids), runtime=right.runtime)
