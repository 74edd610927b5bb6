"""Samples of benchmarks that the model was trained on: an error, unless the benchmark allows them."""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError, safe_open

from clip_core import ClipError
from clip_core.config import from_dict
from clip_core.console import warn
from clip_core.store import Store
from clip_data.stream import Source, build_manifest, refuse_overlap
from clip_eval.benchmarks import BenchmarkConfig

BEGUN_FROM = ("name", "pretrained", "pretrained_image", "pretrained_text")
"""Keys of a run's model that may name files of other runs."""


def training_sources(model: str, *, copy: str = "") -> list[Source]:
    """Returns what a model was trained on, from the config.json of the run whose folder it is in; none for other files.

    Includes the sources of the weights and of the run that the run started from. `copy` is the local file of a model
    at a URL. Warns on stderr if a run wrote the file and its config.json is not there.
    """
    sources = _sources(model, set())
    if sources is not None:
        return sources
    # Weights in another format were not written by a run.
    with suppress(SafetensorError, OSError), safe_open(copy or model, framework="np") as tensors:
        if "clip_train.config" in (tensors.metadata() or {}):
            warn(
                f"cannot check whether {model} was trained on the benchmarks' samples: a training run wrote it, but "
                "the run's config.json is not beside it"
            )
    return []


def _sources(model: str, seen: set[str]) -> list[Source] | None:
    """Returns the sources of the run that wrote `model`, a file or a folder; None if no run's folder is there."""
    for folder in _folders(model):
        store = Store(folder)
        config = store.read_json("config.json") if store.exists("config.json") else {}
        data = config.get("data") if isinstance(config, dict) else None
        if isinstance(data, dict) and "sources" in data:
            if folder in seen:
                return []
            seen.add(folder)
            sources = [from_dict(Source, source, f"{folder}/config.json") for source in data["sources"]]
            begun = [(config.get("model") or {}).get(key) for key in BEGUN_FROM]
            begun.append(re.sub(r"@\d+$", "", config.get("parent") or ""))
            return sources + [source for name in begun if name for source in _sources(name, seen) or []]
    return None


def _folders(model: str) -> Iterator[str]:
    """Yields where the config.json of a run may be, whose file or folder `model` is.

    That is run/model.safetensors or run/checkpoints/step-…/model.safetensors, which may be linked to from anywhere.
    """
    scheme, colon, _ = model.partition("://")
    if colon and scheme not in ("http", "https"):  # a web server has weights, but no runs
        yield from [model, *(model.rsplit("/", up)[0] for up in (1, 3) if model.count("/") >= up + 2)]
    elif not colon and os.path.exists(model):
        places = [Path(model).absolute(), Path(model).resolve()]
        yield from dict.fromkeys(str(place) for path in places for place in (path, *path.parents[0:3:2]))


def refuse_training_samples(benchmarks: Sequence[BenchmarkConfig], sources: Sequence[Source]) -> None:
    """Compares the samples of benchmarks with those that a model was or will be trained on, by uid.

    Raises ClipDataError, with the count, for the first benchmark that shares samples and does not allow it. Warns on
    stderr if training samples no longer exist.
    """
    checked = {(one.dataset, one.selection): one for one in benchmarks if one.overlap == "error"}
    if not sources or not checked:
        return
    held_out = {name: build_manifest([Source(dataset=name[0], selection=name[1])]) for name in checked}
    for source in sources:  # one by one: a source that is gone does not hide what another one shares
        try:
            training = build_manifest([source])
        except ClipError as error:
            warn(f"cannot check whether the model was trained on the benchmarks' samples: {error}")
            continue
        for name, one in checked.items():
            refuse_overlap(training, held_out[name], name=f"benchmark {one.name!r}", option="its overlap = 'allow'")
