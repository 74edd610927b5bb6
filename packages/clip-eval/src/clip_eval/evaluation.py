"""Runs the tasks of a recipe on one model: each dataset is embedded once, finished tasks are kept."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import TYPE_CHECKING, Any

from clip_core.config import fingerprint, resolved, to_dict
from clip_core.store import Store
from clip_eval.config import EvalConfig, TaskConfig
from clip_eval.errors import ClipEvalError
from clip_eval.features import Embedder, check_corrupt, code_version
from clip_eval.labels import Labels, read_labels
from clip_eval.leakage import refuse_training_samples, training_sources
from clip_eval.results import Row, read_results, write_results
from clip_eval.tasks import Outcome, retrieval, zero_shot

if TYPE_CHECKING:
    from clip_data.stream import Manifest


def evaluate(config: EvalConfig) -> list[Row]:
    """The result rows of all tasks, in their order; also written to `config.out`.

    A task whose rows are there with the same fingerprint is not computed again. Raises ClipError, before
    anything is written, when the model, a dataset, a selection or a column is missing, or when
    the model was trained on samples of a task.
    """
    _check(config)
    store = Store(config.out)
    embedder = Embedder(config.model, store)
    known = read_results(store)
    foreign = next((row for row in known if row["model_sha256"] != embedder.model_sha256), None)
    if foreign is not None:
        raise ClipEvalError(
            f"{config.out} holds results of another model ({foreign['model']}, SHA-256 {foreign['model_sha256'][:12]}…"
            f" and not {embedder.model_sha256[:12]}…): choose another --out, or remove it"
        )
    refuse_training_samples(config.tasks, training_sources(config.model))
    manifests = {(task.root, task.selection): _manifest(task) for task in config.tasks}
    of_task = {task.name: manifests[task.root, task.selection] for task in config.tasks}
    labels = {task.name: read_labels(task, of_task[task.name]) for task in config.tasks if task.kind == "zeroshot"}
    wanted = {
        task.name: _fingerprint(task, of_task[task.name], labels.get(task.name), embedder) for task in config.tasks
    }
    rows = {task.name: [row for row in known if row["fingerprint"] == wanted[task.name]] for task in config.tasks}
    others = [row for row in known if row["task"] not in rows]
    for task in config.tasks:
        manifest = of_task[task.name]
        if rows[task.name] and _described(store, task, wanted[task.name]):
            check_corrupt(rows[task.name][0]["corrupt"], manifest, task.max_corrupt)
            continue
        images = embedder.images(
            manifest, precision=task.precision, batch_size=task.batch_size, max_corrupt=task.max_corrupt
        )
        outcome = (
            zero_shot(task, images, embedder, labels[task.name])
            if task.kind == "zeroshot"
            else retrieval(task, images, embedder)
        )
        rows[task.name] = _rows(task, outcome, config.model, embedder.model_sha256, wanted[task.name])
        about = {"task": task.name, "kind": task.kind, "root": task.root, "selection": task.selection}
        store.write_json(_details(task), {**about, "fingerprint": wanted[task.name], **outcome.details})
        write_results(store, [row for found in rows.values() for row in found] + others)
    write_results(store, [row for found in rows.values() for row in found] + others)
    store.write_json("config.json", resolved(config))
    return [row for found in rows.values() for row in found]


def _check(config: EvalConfig) -> None:
    if not config.model:
        raise ClipEvalError("no model given: name the model.safetensors of a training run with --model")
    if not config.out:
        raise ClipEvalError("no output folder given: name one with --out")
    if not config.tasks:
        raise ClipEvalError("no task given: add a [[tasks]] table with name, kind and root, or --tasks")
    repeated = [name for name, n in Counter(task.name for task in config.tasks).items() if n > 1]
    if repeated:
        raise ClipEvalError(f"two tasks are named {repeated[0]!r}: task names must differ")


def _manifest(task: TaskConfig) -> Manifest:
    from clip_data.stream import Source, build_manifest

    return build_manifest([Source(dataset=task.root, selection=task.selection)])


def _fingerprint(task: TaskConfig, manifest: Manifest, labels: Labels | None, embedder: Embedder) -> str:
    """Names the protocol of a task's rows: data, model (with preprocessing and tokenizer), prompts, precision, code."""
    protocol: dict[str, Any] = to_dict(task)
    # Names, speed and limits; the manifest stands for the data, the classes that were read for those that were named.
    for name in ("name", "root", "selection", "batch_size", "max_corrupt", "overlap", "classes", "classes_file"):
        del protocol[name]
    if labels is None:
        del protocol["label_column"], protocol["templates"]
    else:
        protocol["classes"] = to_dict(labels.classes)
    data = {"manifest": manifest.fingerprint, "model": embedder.model_sha256, "code": code_version()}
    return fingerprint({**protocol, **data})


def _details(task: TaskConfig) -> str:
    return f"details/{task.name}.json"


def _described(store: Store, task: TaskConfig, name: str) -> bool:
    """Whether the details of a task are there and belong to the protocol with this fingerprint."""
    return store.exists(_details(task)) and store.read_json(_details(task))["fingerprint"] == name


def _rows(task: TaskConfig, outcome: Outcome, model: str, sha256: str, name: str) -> list[Row]:
    return [
        {
            "task": task.name,
            "kind": task.kind,
            "dataset": f"{task.root}:{task.selection}" if task.selection else task.root,
            **dataclasses.asdict(metric),
            **outcome.counts,
            "precision": task.precision,
            "model": model,
            "model_sha256": sha256,
            "fingerprint": name,
        }
        for metric in outcome.metrics
    ]
