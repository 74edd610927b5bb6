"""The towers as graphs: ONNX files, and torch.export programs."""

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from clip_models.errors import ClipModelsError, first_line
from clip_models.export.formats import Exported, ExportFormat, ExportInput
from clip_models.extras import require

_INLINE_BYTES = 1 << 30  # a protocol buffer cannot hold 2 GiB
_LARGEST_BATCH = 1 << 16
Runner = Callable[[Tensor], Tensor]


class OnnxFormat(ExportFormat):
    """image.onnx and text.onnx, with a dynamic batch."""

    is_graph = True
    refused: ClassVar[Mapping[str, str]] = {
        "bf16": "onnxruntime multiplies no bf16 on the CPU, where an export is checked; choose fp32 or fp16"
    }

    def write(self, folder: Path, source: ExportInput) -> Exported:
        runtime = require("onnxruntime", "export", "the self-check of an export to ONNX")
        return Exported(
            run_image=export_onnx(source.image_tower, source.images, "image", "image_features", folder),
            run_text=export_onnx(source.text_tower, source.captions, "text", "text_features", folder),
            runtime=f"onnxruntime {runtime.__version__}",
        )

    def add_metadata(self, folder: Path, metadata: Mapping[str, str]) -> None:
        """Weights in a file beside the graph are not read."""
        onnx = require("onnx", "export", "export to ONNX")
        for path in (folder / "image.onnx", folder / "text.onnx"):
            model = onnx.load(path, load_external_data=False)
            onnx.helper.set_model_props(model, dict(metadata))
            onnx.save(model, path)


class ProgramFormat(ExportFormat):
    """image.pt2 and text.pt2, with a dynamic batch; the metadata is `clip_models.json` in their archives."""

    is_graph = True

    def write(self, folder: Path, source: ExportInput) -> Exported:
        image, run_image = export_program(source.image_tower, source.images, folder / "image.pt2")
        text, run_text = export_program(source.text_tower, source.captions, folder / "text.pt2")
        self._programs = {"image": image, "text": text}
        return Exported(run_image=run_image, run_text=run_text, runtime=f"torch {torch.__version__}")

    def add_metadata(self, folder: Path, metadata: Mapping[str, str]) -> None:
        files = {"clip_models.json": json.dumps(dict(metadata))}
        for name, program in self._programs.items():
            torch.export.save(program, folder / f"{name}.pt2", extra_files=files)


def export_onnx(tower: nn.Module, example: Tensor, name: str, output: str, folder: Path) -> Runner:
    """Writes `folder/name.onnx`; returns a function that runs it in onnxruntime on the CPU."""
    require("onnxscript", "export", "export to ONNX")
    require("onnx", "export", "export to ONNX")
    runtime = require("onnxruntime", "export", "the self-check of an export to ONNX")
    path = folder / f"{name}.onnx"
    size = sum(tensor.numel() * tensor.element_size() for tensor in tower.state_dict().values())
    optimizer_log = logging.getLogger("onnxscript.optimizer")
    level = optimizer_log.level
    optimizer_log.setLevel(logging.ERROR)  # it warns of each node that it does not simplify
    try:
        torch.onnx.export(
            tower,
            (example,),
            path,
            dynamo=True,
            input_names=[name],
            output_names=[output],
            dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=_LARGEST_BATCH)},),
            external_data=size >= _INLINE_BYTES,
            verbose=False,
        )
    except (torch.onnx.errors.OnnxExporterError, torch._dynamo.exc.Unsupported) as error:
        raise ClipModelsError(f"the {name} tower cannot be exported to ONNX: {first_line(error)}") from error
    finally:
        optimizer_log.setLevel(level)
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the library's exceptions have no base of their own
        raise ClipModelsError(f"onnxruntime cannot run the {name} tower: {first_line(error)}") from error
    return lambda batch: torch.from_numpy(session.run(None, {name: batch.numpy()})[0])


def export_program(tower: nn.Module, example: Tensor, path: Path) -> tuple[torch.export.ExportedProgram, Runner]:
    """Returns the traced program, and a function that runs it as it is read from `path`."""
    batch = torch.export.Dim("batch", min=1, max=_LARGEST_BATCH)
    with torch.no_grad():
        program = torch.export.export(tower, (example,), dynamic_shapes=({0: batch},))
    torch.export.save(program, path)
    return program, torch.no_grad()(torch.export.load(path).module())
