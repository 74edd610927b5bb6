"""The tags of pretrained weights in data/pretrained.toml, under OpenCLIP's function names. Free of torch."""

import dataclasses
import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from clip_core.files import sha256_of
from clip_core.suggest import did_you_mean
from clip_models.errors import ClipModelsError
from clip_models.specs import PreprocessConfig, get_model_spec, list_models
from clip_models.specs.preprocess import Interpolation, ResizeMode
from clip_models.tables import read_table

QUICK_GELU_SUFFIX = "-quickgelu"


@dataclass(frozen=True, kw_only=True)
class PretrainedTag:
    """The place of one set of weights, and the preprocessing of their training."""

    model: str
    """Name of the architecture."""
    tag: str
    """Lower case, with _ instead of -."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Interpolation
    resize_mode: ResizeMode
    quick_gelu: bool = False
    hub: str = ""
    """Repository on the hub, org/name."""
    file: str = ""
    """Weights file in it; "" is the first of OpenCLIP's names that exists."""
    revision: str | None = None
    """Commit, branch or tag of the repository; None is its main branch."""
    url: str = ""
    """A copy elsewhere."""

    @property
    def sha256(self) -> str:
        """The SHA-256 of the file at `url` as far as the address contains it: all (OpenAI), its start, or nothing."""
        path = Path(self.url)
        if "openaipublic" in self.url:
            return path.parent.name
        return path.stem.rpartition("-")[2] if "github.com/mlfoundations" in self.url else ""

    @classmethod
    def from_cfg(cls, cfg: Mapping[str, Any]) -> Self:
        """Reads OpenCLIP's dictionary, whose hf_hub is org/repo/ or org/repo/file."""
        org, _, rest = cfg.get("hf_hub", "").partition("/")
        repo, _, file = rest.partition("/")
        usual = {"mean": (0.0,) * 3, "std": (1.0,) * 3, "interpolation": "bicubic", "resize_mode": "shortest"}
        known = {**usual, **{key: cfg[key] for key in (*usual, "revision", "url") if key in cfg}}
        return cls(model="", tag="", hub=f"{org}/{repo}" if repo else "", file=file, **known)

    def preprocess(self, size: tuple[int, int]) -> PreprocessConfig:
        """Returns the preprocessing at this input size."""
        return PreprocessConfig(
            size=size, mean=self.mean, std=self.std, interpolation=self.interpolation, resize_mode=self.resize_mode
        )

    def to_cfg(self) -> dict[str, Any]:
        """Returns OpenCLIP's dictionary: url, hf_hub, mean, std, interpolation, resize_mode, if true quick_gelu."""
        cfg = {key: getattr(self, key) for key in ("url", "mean", "std", "interpolation", "resize_mode")}
        cfg["hf_hub"] = f"{self.hub}/{self.file}" if self.hub else ""
        if self.quick_gelu:
            cfg["quick_gelu"] = True
        if self.revision is not None:
            cfg["revision"] = self.revision
        return cfg


def list_pretrained(as_str: bool = False) -> list[Any]:
    """Returns every (architecture, tag), or "architecture:tag", in the order of the table."""
    return [f"{model}:{tag}" if as_str else (model, tag) for model, tags in _table().items() for tag in tags]


def list_pretrained_tags_by_model(model: str) -> list[str]:
    """Returns the tags of an architecture; none for an unknown one."""
    return list(_table().get(model.replace("/", "-"), {}))


def list_pretrained_models_by_tag(tag: str) -> list[str]:
    """Returns the architectures that have this tag."""
    return [model for model, tags in _table().items() if _clean(tag) in tags]


def is_pretrained_cfg(model: str, tag: str) -> bool:
    """Whether the architecture has this tag."""
    return find_tag(model, tag) is not None


def get_pretrained_cfg(model: str, tag: str) -> dict[str, Any]:
    """Returns OpenCLIP's dictionary of a tag, empty if there is none."""
    found = find_tag(model, tag)
    return found.to_cfg() if found else {}


def get_pretrained_url(model: str, tag: str) -> str:
    """Returns the address of the copy outside the hub; "" if there is none."""
    found = find_tag(model, tag)
    return found.url if found else ""


def find_tag(model: str, tag: str) -> PretrainedTag | None:
    """Returns the row of an architecture and a tag, in any case and with - or _; None if there is none."""
    return _table().get(model.replace("/", "-"), {}).get(_clean(tag))


def get_pretrained_tag(model: str, tag: str) -> PretrainedTag:
    """Returns the row of an architecture and a tag. Raises ClipModelsError with similar tags or architectures."""
    found = find_tag(model, tag)
    if found is not None:
        return found
    name = get_model_spec(model).name
    tags = list_pretrained_tags_by_model(name)
    others = list_pretrained_models_by_tag(tag)
    if others:
        hint = f"architectures that have it: {', '.join(others)}"
    elif close := did_you_mean(_clean(tag), tags, most=3):
        hint = close
    elif tags:
        hint = f"its tags are {', '.join(tags)}"
    else:
        hint = "it has no pretrained tags; name a file, a folder, hf-hub:org/repo or a URL"
    raise ClipModelsError(f"{name} has no pretrained tag {tag!r}; {hint}")


def identify(path: Path) -> PretrainedTag | None:
    """Returns the row of a local file by the hub's cache folder or by the name of the copy elsewhere.

    Files under OpenAI's plain names ("ViT-B-32.pt") are recognised by their SHA-256.
    """
    rows = [row for tags in _table().values() for row in tags.values()]
    folders = {part for part in path.absolute().parts if part.startswith("models--")}
    for row in rows:
        if row.hub and f"models--{row.hub.replace('/', '--')}" in folders:
            return row
    named = [row for row in rows if row.url and os.path.basename(row.url) == path.name]
    if named and named[0].sha256 and path.is_file():
        return named[0] if sha256_of(path).startswith(named[0].sha256) else None
    return named[0] if named else None


def _clean(tag: str) -> str:
    return tag.lower().replace("-", "_")


@functools.cache
def _table() -> dict[str, dict[str, PretrainedTag]]:
    data = read_table("pretrained")
    table = {
        model: {tag: _row(model, tag, row, data["hosts"], data["presets"]) for tag, row in tags.items()}
        for model, tags in data["tags"].items()
    }
    known = set(list_models())
    for model in list(table):
        quick = {tag: row for tag, row in table[model].items() if row.quick_gelu}
        twin = model + QUICK_GELU_SUFFIX
        if quick and twin in known:
            table[twin] = {tag: dataclasses.replace(row, model=twin) for tag, row in quick.items()}
    return table


def _row(
    model: str, tag: str, row: str | Mapping[str, Any], hosts: Mapping[str, str], presets: Mapping[str, Any]
) -> PretrainedTag:
    values = {"hub": row} if isinstance(row, str) else dict(row)
    values = {**presets[values.pop("preset", "openai")], **values}
    host, _, rest = values.get("url", "").partition(":")
    if rest:
        values["url"] = hosts[host] + rest
    values |= {key: tuple(values[key]) for key in ("mean", "std")}
    return PretrainedTag(model=model, tag=tag, **values)
