"""The named architectures: those of data/models, and those added by `add_model_config`."""

import json
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clip_core.suggest import did_you_mean
from clip_models.errors import ClipModelsError
from clip_models.specs.families import built_in, resolve
from clip_models.specs.model import ModelSpec
from clip_models.specs.openclip import from_open_clip_config

_added: dict[str, ModelSpec] = {}


def list_models() -> list[str]:
    """Returns the names of all architectures, sorted."""
    return sorted({name for name, table in built_in().items() if not table.get("abstract")} | set(_added))


def get_model_spec(name: str) -> ModelSpec:
    """Returns the spec of a named architecture; "ViT-B/32" is "ViT-B-32". Raises ClipModelsError if unknown."""
    key = name.replace("/", "-")
    if key in _added:
        return _added[key]
    if key not in built_in() or built_in()[key].get("abstract"):
        folded = {model.lower(): model for model in list_models()}
        like = key.lower().replace("_", "-")
        hint = did_you_mean(
            like, folded, "'clip-models list' or list_models() names them all", most=3, spell=folded.__getitem__
        )
        raise ClipModelsError(f"unknown model {name!r}; {hint}")
    return ModelSpec.from_dict({"name": key, **resolve(key, built_in())})


def add_model_config(path: str | os.PathLike[str]) -> list[str]:
    """Adds named architectures and returns their names.

    `path`: OpenCLIP's JSON of one model, named after the file; a TOML file of entries as in data/models, which may
    extend the built-in ones; or a folder of such files. A name can be reused, except that of a different built-in
    architecture. Raises ClipModelsError, and then nothing is added.
    """
    path = Path(path)
    if path.is_dir():
        found: dict[str, ModelSpec] = {}
        for file in sorted((*path.glob("*.json"), *path.glob("*.toml"))):
            found |= _read(file, strict=False)
    elif path.is_file():
        found = _read(path, strict=True)
    else:
        raise ClipModelsError(f"{path} is neither a file nor a folder")
    if not found:
        raise ClipModelsError(f"{path} holds no model config: neither OpenCLIP's JSON nor a TOML file of entries")
    for name, spec in found.items():
        if name in built_in() and (built_in()[name].get("abstract") or get_model_spec(name) != spec):
            raise ClipModelsError(f"{path}: {name!r} is the name of a different built-in architecture; choose another")
    _added.update({name: spec for name, spec in found.items() if name not in built_in()})
    return list(found)


def _read(path: Path, strict: bool) -> dict[str, ModelSpec]:
    """Returns the specs in a file. Unless `strict`, other JSON files are skipped, as in OpenCLIP."""
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".toml":
            return _from_toml(tomllib.loads(text))
        data = json.loads(text)
        if not strict and not (isinstance(data, Mapping) and {"embed_dim", "vision_cfg", "text_cfg"} & set(data)):
            return {}
        return {path.stem: from_open_clip_config(data, path.stem)}
    except (OSError, ValueError) as error:  # TOMLDecodeError, JSONDecodeError and ClipModelsError are ValueErrors
        raise ClipModelsError(f"{path}: {error}") from error


def _from_toml(tables: Mapping[str, Any]) -> dict[str, ModelSpec]:
    known = {**built_in(), **tables}
    specs = {}
    for name, table in tables.items():
        if not isinstance(table, Mapping):
            raise ClipModelsError(f"{name!r} must be a table, not {table!r}")
        if not table.get("abstract"):
            try:
                specs[name] = ModelSpec.from_dict({"name": name, **resolve(name, known)})
            except ClipModelsError as error:
                raise ClipModelsError(f"{name}: {error}") from error
    return specs
