"""`export_model`: a folder with a model for another runtime, checked, or nothing at all."""

import copy
import json
import os
from pathlib import Path
from typing import Any

from clip_core import Store
from clip_models.errors import ClipModelsError, local_path, registered
from clip_models.export.check import SelfCheck, self_check
from clip_models.export.formats import FORMATS, ExportFormat, ExportInput
from clip_models.export.tokenizer_files import write_tokenizer
from clip_models.export.towers import ImageGraph, TextGraph, sample_captions, sample_images
from clip_models.model import CLIP
from clip_models.model.precision import apply_precision
from clip_models.tokenizers import Tokenizer, get_tokenizer


def export_model(
    model: CLIP,
    to: str,
    output: str | os.PathLike[str],
    *,
    precision: str = "fp32",
    pixels_inside: bool = False,
    l2_inside: bool = False,
    pairs: int = 256,
    tokenizer: Tokenizer | None = None,
) -> SelfCheck:
    """Writes `model` into the new folder `output`, with its preprocessing and tokenizer, and checks the result.

    `to`: onnx (image.onnx, text.onnx), torch-export (image.pt2, text.pt2), hf (a folder of transformers), open-clip
    (open_clip_config.json and safetensors), or `module:class` of an ExportFormat. The towers of onnx and torch-export
    take batches of any size and return float32; `pixels_inside` puts mean and std into the image tower, which then
    takes pixels on the scale 0 to 1, and `l2_inside` puts the L2 normalisation into both. `precision` of the products:
    fp32, fp16 or bf16.

    The check runs `pairs` images and captions through the model, which is left unchanged in eval mode, and through the
    exported form. Its result is in export.json, and in the metadata of graphs. Raises ClipModelsError if the two
    differ, if `output` exists, or if the model cannot be exported; then nothing is left under `output`.
    """
    form: ExportFormat = registered(FORMATS, to)()
    if precision not in ("fp32", "fp16", "bf16"):
        raise ClipModelsError(f"precision {precision!r} is not exported; choose from fp32, fp16, bf16")
    if precision in form.refused:
        raise ClipModelsError(form.refused[precision])
    if not form.is_graph and (pixels_inside or l2_inside):
        raise ClipModelsError(f"normalisation can be put into the graphs of onnx and torch-export, not into {to!r}")
    if pairs < 1:
        raise ClipModelsError(f"pairs {pairs} must be positive: an export is checked")
    output = local_path(output, "output")
    if output.exists():
        raise ClipModelsError(f"{output} exists; name a new folder")
    model.eval()
    tokenizer = tokenizer or get_tokenizer(model.spec)
    inside = {"pixels_inside": pixels_inside, "l2_inside": l2_inside}
    store = Store(output.parent)
    with store.staging() as scratch, store.trying("write", output.name):
        folder = scratch / "export"
        folder.mkdir()
        write_tokenizer(folder, tokenizer)
        check = _export(model, form, folder, pairs, precision, tokenizer, **inside)
        spec = model.spec.to_dict()
        description: dict[str, Any] = {
            "format": to,
            "precision": precision,
            "self_check": check.to_dict(),
            "spec": spec,
        }
        if form.is_graph:
            description |= inside
            _write_json(folder / "preprocess.json", spec["preprocess"])
        _write_json(folder / "export.json", description)
        form.add_metadata(folder, {f"clip_models.{key}": json.dumps(value) for key, value in description.items()})
        os.replace(folder, output)
    return check


def _export(
    model: CLIP,
    form: ExportFormat,
    folder: Path,
    pairs: int,
    precision: str,
    tokenizer: Tokenizer,
    pixels_inside: bool,
    l2_inside: bool,
) -> SelfCheck:
    # A copy in low precision: the export is checked against the model itself.
    low = model if precision == "fp32" else apply_precision(copy.deepcopy(model), f"pure_{precision}")
    towers = [
        (
            ImageGraph(m, pixels_inside=pixels_inside, l2_inside=l2_inside).eval(),
            TextGraph(m, l2_inside=l2_inside).eval(),
        )
        for m in (model, low)
    ]

    def samples(count: int) -> dict[str, Any]:
        images = sample_images(model.spec, count, pixels_inside=pixels_inside)
        return {"images": images, "captions": sample_captions(tokenizer, count)}

    source = ExportInput(model=low, image_tower=towers[1][0], text_tower=towers[1][1], **samples(2))
    exported = form.write(folder, source)
    return self_check(*towers[0], exported, **samples(pairs), precision=precision)


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
