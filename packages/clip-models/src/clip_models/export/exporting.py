"""`export_model`: a folder with a model for another runtime, checked, or nothing at all."""

import copy
import json
import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from clip_models.errors import ClipModelsError, local_path
from clip_models.export.check import SelfCheck, self_check
from clip_models.export.graphs import describe_onnx, describe_program, export_onnx, export_program
from clip_models.export.tokenizer_files import write_tokenizer
from clip_models.export.towers import ImageTower, TextTower, sample_captions, sample_pictures
from clip_models.factory import create_model
from clip_models.model import CLIP
from clip_models.model.precision import apply_precision
from clip_models.specs import ModelSpec
from clip_models.tokenizers import Tokenizer, get_tokenizer
from clip_models.weights.convert.folders import save_huggingface, save_open_clip

FORMATS = ("onnx", "torch-export", "hf", "open-clip")
PAIRS = 256


def export_model(
    model: CLIP,
    to: str,
    output: str | os.PathLike[str],
    *,
    precision: str = "fp32",
    pixels_inside: bool = False,
    l2_inside: bool = False,
    pairs: int = PAIRS,
    tokenizer: Tokenizer | None = None,
) -> SelfCheck:
    """Writes `model` into the new folder `output`, with its preprocessing and tokenizer, and checks what it wrote.

    `to`: onnx (image.onnx, text.onnx), torch-export (image.pt2, text.pt2), hf (a folder of transformers) or
    open-clip (open_clip_config.json and safetensors). The towers of onnx and torch-export take batches of any size
    and give float32; `pixels_inside` puts mean and std into the image tower, which then takes pixels on the scale 0
    to 1, and `l2_inside` puts the L2 normalisation into both. `precision` of the products: fp32, fp16 or bf16.

    The check runs `pairs` pictures and captions through the model as it was given, which is left so but for its eval
    mode, and through what was written. Its result stands in export.json, and in the graphs' own metadata.
    ClipModelsError if the two differ, if `output` exists, or if the model cannot be exported; nothing is left under
    `output` then.
    """
    if to not in FORMATS:
        raise ClipModelsError(f"export to {to!r} is unknown; choose from {', '.join(FORMATS)}")
    if precision not in ("fp32", "fp16", "bf16"):
        raise ClipModelsError(f"precision {precision!r} is not exported; choose from fp32, fp16, bf16")
    if to in ("hf", "open-clip") and (pixels_inside or l2_inside):
        raise ClipModelsError(f"normalisation can be put into the graphs of onnx and torch-export, not into {to!r}")
    if to == "onnx" and precision == "bf16":
        raise ClipModelsError(
            "onnxruntime multiplies no bf16 on the CPU, where an export is checked; choose fp32 or fp16"
        )
    if pairs < 1:
        raise ClipModelsError(f"pairs {pairs} must be positive: an export is checked")
    output = local_path(output, "output")
    if output.exists():
        raise ClipModelsError(f"{output} exists; name a new folder")
    model.eval()
    tokenizer = tokenizer or get_tokenizer(model.spec)
    folder = output.with_name(f".{output.name}.{uuid.uuid4().hex}.tmp")
    try:
        folder.mkdir(parents=True)
        try:
            if to in ("hf", "open-clip"):
                check = _export_weights(model, to, folder, pairs, precision, tokenizer)
            else:
                check = _export_graphs(model, to, folder, pairs, precision, tokenizer, pixels_inside, l2_inside)
            os.replace(folder, output)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        raise ClipModelsError(f"cannot write {output}: {error.strerror}; choose a writable place") from error
    return check


def _export_graphs(
    model: CLIP, to: str, folder: Path, pairs: int, precision: str, tokenizer: Tokenizer, pixels: bool, l2: bool
) -> SelfCheck:
    spec = model.spec
    towers = [
        (ImageTower(m, pixels_inside=pixels, l2_inside=l2).eval(), TextTower(m, l2_inside=l2).eval())
        for m in (model, _in_precision(model, precision))
    ]
    image_tower, text_tower = towers[1]
    pictures, captions = sample_pictures(spec, pairs, pixels_inside=pixels), sample_captions(tokenizer, pairs)
    # Two samples: a size of one is taken for a constant.
    examples = sample_pictures(spec, 2, pixels_inside=pixels), sample_captions(tokenizer, 2)
    if to == "onnx":
        import onnxruntime

        runtime = f"onnxruntime {onnxruntime.__version__}"
        run_image = export_onnx(image_tower, examples[0], "image", "image_features", folder)
        run_text = export_onnx(text_tower, examples[1], "text", "text_features", folder)
    else:
        runtime = f"torch {torch.__version__}"
        image_program, run_image = export_program(image_tower, examples[0], "image", folder)
        text_program, run_text = export_program(text_tower, examples[1], "text", folder)
    check = self_check(*towers[0], run_image, run_text, pictures, captions, runtime=runtime, precision=precision)
    inputs = {"pixels_inside": pixels, "l2_inside": l2}
    description = _describe(folder, spec, to, precision, check, inputs)
    if to == "onnx":
        for name in ("image", "text"):
            describe_onnx(folder / f"{name}.onnx", description)
    else:
        describe_program(image_program, folder / "image.pt2", description)
        describe_program(text_program, folder / "text.pt2", description)
    preprocess = spec.preprocess.to_dict()
    (folder / "preprocess.json").write_text(json.dumps(preprocess, indent=2) + "\n", encoding="utf-8")
    write_tokenizer(folder, tokenizer)
    return check


def _export_weights(model: CLIP, to: str, folder: Path, pairs: int, precision: str, tokenizer: Tokenizer) -> SelfCheck:
    (save_huggingface if to == "hf" else save_open_clip)(folder, _in_precision(model, precision))
    write_tokenizer(folder, tokenizer)
    again = create_model(f"local-dir:{folder}").eval()
    towers = [
        (ImageTower(m, pixels_inside=False, l2_inside=False), TextTower(m, l2_inside=False)) for m in (model, again)
    ]
    check = self_check(
        *towers[0],
        *towers[1],
        sample_pictures(model.spec, pairs, pixels_inside=False),
        sample_captions(tokenizer, pairs),
        runtime=f"torch {torch.__version__}, from the folder",
        precision=precision,
    )
    _describe(folder, model.spec, to, precision, check, {})
    return check


def _in_precision(model: CLIP, precision: str) -> CLIP:
    """A copy in low precision: the model that was given stays what the export is checked against."""
    if precision == "fp32":
        return model
    return apply_precision(copy.deepcopy(model), f"pure_{precision}")


def _describe(
    folder: Path, spec: ModelSpec, to: str, precision: str, check: SelfCheck, inputs: Mapping[str, Any]
) -> dict[str, str]:
    """Writes export.json; gives the same as strings, for a graph's metadata."""
    description = {
        "format": to, "precision": precision, **inputs, "self_check": check.to_dict(), "spec": spec.to_dict(),
    }  # fmt: skip
    (folder / "export.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    return {f"clip_models.{key}": json.dumps(value) for key, value in description.items()}
