"""The towers as graphs: ONNX files, and torch.export programs."""

import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from clip_models.errors import ClipModelsError, first_line
from clip_models.extras import require

Runner = Callable[[Tensor], Tensor]
_INLINE_BYTES = 1 << 30  # a protocol buffer cannot hold 2 GiB
_LARGEST_BATCH = 1 << 16


def export_onnx(tower: nn.Module, example: Tensor, name: str, output: str, folder: Path) -> Runner:
    """Writes `folder/name.onnx` with a dynamic batch; gives what runs it in onnxruntime on the CPU."""
    require("onnxscript", "export", "export to ONNX")
    require("onnx", "export", "export to ONNX")
    runtime = require("onnxruntime", "export", "the self-check of an export to ONNX")
    path = folder / f"{name}.onnx"
    size = sum(tensor.numel() * tensor.element_size() for tensor in tower.state_dict().values())
    chatter = logging.getLogger("onnxscript.optimizer")
    level = chatter.level
    chatter.setLevel(logging.ERROR)  # it warns of each node that it does not simplify
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
        chatter.setLevel(level)
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the library's exceptions have no base of their own
        raise ClipModelsError(f"onnxruntime cannot run the {name} tower: {first_line(error)}") from error
    return lambda batch: torch.from_numpy(session.run(None, {name: batch.numpy()})[0])


def describe_onnx(path: Path, metadata: Mapping[str, str]) -> None:
    """Adds `metadata` to an ONNX file; weights that stand in a file beside it are not read."""
    onnx = require("onnx", "export", "export to ONNX")
    model = onnx.load(path, load_external_data=False)
    onnx.helper.set_model_props(model, dict(metadata))
    temporary = path.with_suffix(".tmp")
    onnx.save(model, temporary)
    os.replace(temporary, path)


def export_program(
    tower: nn.Module, example: Tensor, name: str, folder: Path
) -> tuple[torch.export.ExportedProgram, Runner]:
    """Traces the tower with a dynamic batch; gives the program, and what runs it after a trip through a file."""
    batch = torch.export.Dim("batch", min=1, max=_LARGEST_BATCH)
    with torch.no_grad():
        program = torch.export.export(tower, (example,), dynamic_shapes=({0: batch},))
    torch.export.save(program, folder / f"{name}.pt2")
    loaded = torch.export.load(folder / f"{name}.pt2").module()

    def run(inputs: Tensor) -> Tensor:
        with torch.no_grad():
            out: Tensor = loaded(inputs)
        return out

    return program, run


def describe_program(program: torch.export.ExportedProgram, path: Path, metadata: Mapping[str, str]) -> None:
    """Writes the program again, with `metadata` in the file `clip_models.json` of its archive."""
    torch.export.save(program, path, extra_files={"clip_models.json": json.dumps(dict(metadata))})
