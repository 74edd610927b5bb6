"""Evaluation samples that the model was trained on: an error, unless a task allows them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from clip_core import ClipError
from clip_core.config import from_dict
from clip_core.store import Store

if TYPE_CHECKING:
    from clip_data.stream import Source
    from clip_eval.config import TaskConfig


def training_sources(model: str) -> list[Source]:
    """What a model was trained on, by the config.json of the run whose folder it lies in; none for another file."""
    from clip_data.stream import Source

    # run/model.safetensors or run/checkpoints/step-…/model.safetensors
    folder = (model.rpartition("/")[0] or ".").partition("/checkpoints/")[0]
    store = Store(folder)
    data = store.read_json("config.json").get("data") if store.exists("config.json") else None
    if not isinstance(data, dict) or "sources" not in data:
        return []
    return [from_dict(Source, source, f"{folder}/config.json") for source in data["sources"]]


def refuse_training_samples(tasks: Sequence[TaskConfig], sources: Sequence[Source]) -> None:
    """Compares the samples of the tasks with those that a model was or will be trained on, by uid.

    Raises ClipDataError, with the count, at the first task that shares samples and does not allow it. Warns on stderr
    when the training samples are no longer there.
    """
    from clip_data.stream import Source, build_manifest, refuse_overlap

    checked = {(task.root, task.selection): task for task in tasks if task.overlap == "error"}
    if not sources or not checked:
        return
    try:
        training = build_manifest(sources)
    except ClipError as error:
        print(f"warning: cannot check whether the model was trained on the tasks' samples: {error}", file=sys.stderr)
        return
    for task in checked.values():
        held_out = build_manifest([Source(root=task.root, selection=task.selection)])
        refuse_overlap(training, held_out, name=f"task {task.name!r}", option="its overlap = 'allow'")
