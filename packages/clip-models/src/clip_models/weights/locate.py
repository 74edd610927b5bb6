"""Finds the weights that a caller names: by a tag, hf-hub:, local-dir:, a file, a folder or a URL."""

import os
import warnings
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from clip_models.errors import ClipModelsError
from clip_models.specs import ModelSpec, as_pair, list_models
from clip_models.weights import hub
from clip_models.weights.convert.description import (
    HF_CONFIG,
    HF_PROCESSOR,
    OPEN_CLIP_CONFIG,
    Description,
    describe_spec,
    read_config,
    reconcile,
)
from clip_models.weights.download import download_pretrained_from_url
from clip_models.weights.load import describe_source, find_weights
from clip_models.weights.registry import QUICK_GELU_SUFFIX, PretrainedTag, find_tag, get_pretrained_tag, identify
from clip_models.weights.registry import list_pretrained_tags_by_model as tags_of
from clip_models.weights.tensorfiles import INDEX_SUFFIX, WEIGHTS_SUFFIXES
from clip_models.weights.tensorfiles.safetensors import read_index

HUB_PREFIX = "hf-hub:"
FOLDER_PREFIX = "local-dir:"


@dataclass(frozen=True, kw_only=True)
class Source:
    """Weights that were found."""

    name: str
    """The name that the caller gave."""
    weights: Path | None = None
    """The local file; None if it was not requested, and for a tag, whose weights are fetched after `settle`."""
    spec: ModelSpec | None = None
    """Their description, or that of a file beside them."""
    tag: PretrainedTag | None = None
    """The tag that was named."""


def is_model_source(name: str) -> bool:
    """Whether this names a whole model, not an architecture."""
    if name.startswith((HUB_PREFIX, FOLDER_PREFIX)) or "://" in name or name.endswith(WEIGHTS_SUFFIXES):
        return True
    return name != "" and name.replace("/", "-") not in list_models() and Path(name).expanduser().is_dir()


def locate(
    name: str | os.PathLike[str],
    model: str = "",
    cache_dir: str | os.PathLike[str] | None = None,
    load_weights: bool = True,
) -> Source:
    """Returns the source of that name, which may be a tag of the architecture `model`.

    Without `load_weights` only descriptions are fetched. Raises ClipModelsError if there is no such source.
    """
    text = os.fspath(name)
    if text.startswith(HUB_PREFIX):
        return _on_the_hub(text, cache_dir, load_weights)
    if text.startswith(FOLDER_PREFIX):
        folder = Path(text.removeprefix(FOLDER_PREFIX)).expanduser()
        if text == FOLDER_PREFIX:
            raise ClipModelsError(f"{text!r} names no folder; the form is {FOLDER_PREFIX}path/of/a/folder")
        if not folder.is_dir():
            raise ClipModelsError(f"there is no folder {folder}")
        return _in_a_folder(text, folder, load_weights)
    if "://" in text and not text.startswith("file://"):
        if not load_weights:
            return Source(name=text)
        path = download_pretrained_from_url(text, cache_dir)
        return Source(name=text, weights=path, spec=describe_source(path))
    if isinstance(name, str) and (tag := find_tag(model, text)) is not None:
        return Source(name=text, tag=tag)
    path = Path(text.removeprefix("file://")).expanduser()
    if path.is_dir():
        return _in_a_folder(text, path, load_weights)
    if not path.is_file():
        if model in list_models() and path.name == text and not text.endswith(WEIGHTS_SUFFIXES):
            get_pretrained_tag(model, text)
        raise ClipModelsError(f"there is no weights file {text}")
    return Source(name=text, weights=path, spec=describe_source(path))


def find_files(
    name: str | os.PathLike[str], model: str = "", cache_dir: str | os.PathLike[str] | None = None
) -> list[Path]:
    """Returns the local files of the weights of that name: one, or an index and its parts. Arguments as in `locate`."""
    source = locate(name, model, cache_dir)
    path = source.weights if source.tag is None else hub.download_pretrained(source.tag, cache_dir=cache_dir)
    assert path is not None
    if not path.name.endswith(INDEX_SUFFIX):
        return [path]
    return [path, *(path.with_name(part) for part in sorted(set(read_index(path).values())))]


def settle(asked: ModelSpec | None, source: Source, sure_of: Collection[str] = ()) -> ModelSpec:
    """Returns the spec to load: `asked`, completed by the tag or the description, or without it the description.

    Raises ClipModelsError if there is no description, or if it is another network or activation; `sure_of` as in
    `load_pretrained`.
    """
    if asked is None:
        if source.spec is None:
            raise ClipModelsError(
                f"{source.name} has no description; load it with create_model(architecture, pretrained={source.name!r})"
            )
        return source.spec
    if source.tag is not None:
        tag = source.tag
        row = Description(
            f"its tag {tag.tag} of {tag.model}",
            quick_gelu=tag.quick_gelu,
            preprocess=tag.preprocess(as_pair(asked.vision.image_size)),
        )
        return reconcile(asked, row, sure_of, source.name)
    if source.weights is None:
        known = describe_spec("its description", source.spec) if source.spec is not None else None
        return reconcile(asked, known, sure_of, source.name)
    if source.spec is None and identify(source.weights) is None and (gaps := _gaps(asked)):
        warnings.warn(f"{source.name} does not say {gaps}", stacklevel=4)
    return asked


def _on_the_hub(name: str, cache_dir: str | os.PathLike[str] | None, load_weights: bool) -> Source:
    repo, _, asked = name.removeprefix(HUB_PREFIX).partition("@")
    revision = asked or None
    if not repo:
        raise ClipModelsError(f"{name!r} names no repository; the form is hf-hub:org/name or hf-hub:org/name@revision")
    config = hub.find_optional(repo, OPEN_CLIP_CONFIG, revision, cache_dir)
    if config is None:
        config = hub.find_optional(repo, HF_CONFIG, revision, cache_dir)
    if config is not None:
        revision = hub.commit_of(config)  # all files of one commit, also if the branch changes meanwhile
        if config.name != OPEN_CLIP_CONFIG:
            hub.find_optional(repo, HF_PROCESSOR, revision, cache_dir)
    weights = hub.download_weights(repo, revision, cache_dir) if load_weights else None
    said = read_config(config) if config is not None else None
    spec = describe_source(weights) if weights is not None else said
    return Source(name=name, weights=weights, spec=spec)


def _in_a_folder(name: str, folder: Path, load_weights: bool) -> Source:
    config = folder / OPEN_CLIP_CONFIG
    if not load_weights and config.is_file():
        return Source(name=name, spec=read_config(config))
    weights = find_weights(folder)
    return Source(name=name, weights=weights if load_weights else None, spec=describe_source(weights))


def _gaps(asked: ModelSpec) -> str:
    """Returns what weights without a description leave open and known weights of the architecture differ in."""
    base = asked.name.removesuffix(QUICK_GELU_SUFFIX)
    twin = base + QUICK_GELU_SUFFIX
    gaps = []
    if twin in list_models():
        mine, other = ("QuickGELU", base) if asked.quick_gelu else ("GELU", twin)
        gaps.append(f"its activation: {mine} is used, {other} has the other one")
    size = as_pair(asked.vision.image_size)
    found = {tag.preprocess(size) for name in tags_of(asked.name) if (tag := find_tag(asked.name, name))}
    if len(found) > 1:
        mean = ", ".join(f"{value:.3g}" for value in asked.preprocess.mean)
        gaps.append(f"its preprocessing: mean ({mean}) and resize_mode {asked.preprocess.resize_mode} are used")
    return ", nor ".join(gaps)
