"""Explains by shapes why weights do not fit a model, and finds the architectures that they fit."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from clip_models.errors import ClipModelsError
from clip_models.model import build_model
from clip_models.specs import CLIPTextConfig, ModelSpec, TimmConfig, ViTConfig, get_model_spec, list_models
from clip_models.tables import read_table
from clip_models.towers.common import NoRandomInit

_Shape = tuple[int, ...]
_Facts = dict[tuple[str, str], Any]


def describe_mismatch(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    """Returns the differences of weights from those of a model (both with OpenCLIP's names), such as "image patch size
    32 against 16". Empty if only single tensors differ."""
    theirs, ours = _facts(tensors), _facts(wanted)
    causes = {}
    for tower, size in ours | theirs:
        mine, other = (facts.get((tower, size), "none") for facts in (ours, theirs))
        comparable = not size or (theirs.get((tower, "")) == ours.get((tower, "")) and "none" not in (mine, other))
        if comparable and mine != other:
            causes[tower, size] = f"{tower} {size or 'tower:'} {other} against {mine}".strip()
    if ("image", "patch size") in causes:
        causes.pop(("image", "positions"), None)  # they follow from it
    return list(causes.values())


def find_fitting(tensors: Mapping[str, Tensor]) -> list[str]:
    """Returns the named architectures whose tensors have the names (OpenCLIP's) and shapes of these.

    Architectures of a library that is not installed are skipped.
    """
    facts = _facts(tensors)
    has = {name.removeprefix("text."): tensor.shape for name, tensor in tensors.items()}
    found = []
    for name in list_models():
        spec = get_model_spec(name)
        if not _may_fit(spec, facts):
            continue
        try:
            with torch.device("meta"), NoRandomInit():
                state = build_model(spec).state_dict()
        except (ClipModelsError, ImportError):
            continue
        wanted = {key.removeprefix("text."): tensor.shape for key, tensor in state.items()}
        if {**wanted, "logit_bias": torch.Size()} == {**has, "logit_bias": torch.Size()}:
            found.append(name)
    return found


def _may_fit(spec: ModelSpec, facts: _Facts) -> bool:
    """Whether the spec agrees with the facts; does not build it."""
    vision, text = spec.vision, spec.text
    names = read_table("mismatch")["towers"]
    towers = (names.get(vision.kind), names.get(text.kind), read_table("mismatch")["decoder"] if spec.decoder else None)
    if towers != tuple(facts.get((tower, "")) for tower in ("image", "text", "caption")):
        return False
    said: _Facts = {("", "embed_dim"): spec.embed_dim}
    if isinstance(vision, ViTConfig):
        said |= {("image", "patch size"): vision.patch_size, ("image", "width"): vision.width}
        said |= {("image", "layers"): vision.layers}
    if isinstance(vision, TimmConfig) and (patch := re.search(r"_patch(\d+)_", vision.model_name)):
        said["image", "patch size"] = vision.model_kwargs.get("patch_size", int(patch[1]))
    if isinstance(text, CLIPTextConfig):
        said |= {("text", "width"): text.width, ("text", "layers"): text.layers}
        said |= {("text", "vocabulary size"): text.vocab_size}
    return all(facts.get(key, value) == value for key, value in said.items())


def _facts(tensors: Mapping[str, Tensor]) -> _Facts:
    """Returns (tower, size) → its value, and (tower, "") → what the tower is."""
    named = {name.removeprefix("text."): tuple(tensor.shape) for name, tensor in tensors.items()}
    facts: _Facts = {}
    tables = read_table("mismatch")
    for tower, kinds in tables["kinds"].items():
        for pattern, kind in kinds:
            if any(re.match(pattern, name) for name in named):
                facts.setdefault((tower, ""), kind)
    for row in tables["sizes"]:
        for name, shape in named.items():
            if len(shape) > 1 and re.fullmatch(row["tensor"], name):
                facts.setdefault((row["tower"], row["size"]), shape[row["axis"]])
    for tower, pattern in tables["layers"].items():
        if numbers := [int(match[1]) for name in named if (match := re.match(pattern, name))]:
            facts[tower, "layers"] = max(numbers) + 1
    return facts
