"""Samples of benchmarks that the model was trained on: an error, unless the benchmark allows them."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError, safe_open

from clip_core import ClipError
from clip_core.config import from_dict
from clip_core.console import warn
from clip_core.store import Store
from clip_data.stream import Source, build_manifest, refuse_overlap
from clip_eval.benchmarks import BenchmarkConfig


def training_sources(model: str, *, seen: Sequence[Path] = ()) -> list[Source]:
    """Returns what a model was trained on, from the config.json of the run whose folder it is in; none for other files.

    Includes the sources of the weights that the run started from. Warns on stderr if a run wrote the file and its
    config.json is not there.
    """
    file = Path(model).resolve()
    if file in seen or not file.is_file():
        return []
    # run/model.safetensors or run/checkpoints/step-…/model.safetensors, which may be linked to from anywhere
    places = [path.parents[up] for path in (Path(model).absolute(), file) for up in (0, 2) if up < len(path.parents)]
    for folder in places:
        store = Store(folder)
        config = store.read_json("config.json") if store.exists("config.json") else {}
        data = config.get("data") if isinstance(config, dict) else None
        if isinstance(data, dict) and "sources" in data:
            before = (config.get("model") or {}).get("pretrained") or ""
            sources = [from_dict(Source, source, f"{folder}/config.json") for source in data["sources"]]
            return [*sources, *training_sources(before, seen=[*seen, file])]
    # Weights in another format were not written by a run.
    with suppress(SafetensorError), safe_open(file, framework="np") as tensors:
        if "clip_train.config" in (tensors.metadata() or {}):
            warn(
                f"cannot check whether {model} was trained on the benchmarks' samples: a training run wrote it, but "
                "the run's config.json is not beside it"
            )
    return []


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
