"""Runs the benchmarks of a recipe on one model. Each dataset is embedded once, and finished benchmarks are kept."""

import sys
from dataclasses import asdict
from functools import cache
from itertools import chain
from typing import Any

from clip_core.config import fingerprint, resolved
from clip_core.files import sha256_of
from clip_core.store import Store
from clip_data.stream import Manifest, Source, build_manifest
from clip_eval.benchmarks import BenchmarkConfig, check_names
from clip_eval.config import EvalConfig
from clip_eval.errors import ClipEvalError
from clip_eval.features import FileEmbedder, check_corrupt, code_version
from clip_eval.leakage import refuse_training_samples, training_sources
from clip_eval.results import Row, details_file, read_results, write_results


def evaluate(config: EvalConfig) -> list[Row]:
    """Returns the result rows of all benchmarks, in their order, and writes them to `config.out`.

    A benchmark whose rows are there with the same fingerprint is not computed again. Raises ClipError, before anything
    is written, if the model, a dataset, a selection or a column is missing, or if the model was trained on samples of a
    benchmark.
    """
    _check(config)
    store = Store(config.out)
    embedder = FileEmbedder(config.model, store)
    known = read_results(store)
    for row in known:
        if row["model_sha256"] != embedder.model_sha256:
            raise ClipEvalError(
                f"{config.out} holds results of another model ({row['model']}, SHA-256 {row['model_sha256'][:12]}… "
                f"and not {embedder.model_sha256[:12]}…): choose another --out, or remove it"
            )
    refuse_training_samples(config.benchmarks, training_sources(config.model, copy=embedder.file))
    manifest_of = cache(lambda dataset, selection: build_manifest([Source(dataset=dataset, selection=selection)]))
    prepared = []
    rows: dict[str, list[Row]] = {}
    for benchmark in config.benchmarks:
        manifest = manifest_of(benchmark.dataset, benchmark.selection)
        data = benchmark.read(manifest)
        name = _fingerprint(benchmark, manifest, data, embedder)
        prepared.append((benchmark, manifest, data, name))
        rows[benchmark.name] = [row for row in known if row["fingerprint"] == name]
    others = [row for row in known if row["benchmark"] not in rows]
    for benchmark, manifest, data, name in prepared:
        file = details_file(benchmark.name)
        if rows[benchmark.name] and store.exists(file) and store.read_json(file)["fingerprint"] == name:
            check_corrupt(rows[benchmark.name][0]["corrupt"], manifest, benchmark.max_corrupt)
        else:
            rows[benchmark.name] = _measure(benchmark, manifest, data, name, embedder)
        write_results(store, [*chain(*rows.values()), *others])
    store.write_json("config.json", resolved(config))
    return [*chain(*rows.values())]


def _check(config: EvalConfig) -> None:
    for value, advice in (
        (config.model, "model given: name the model.safetensors of a training run with --model"),
        (config.out, "output folder given: name one with --out"),
        (config.benchmarks, "benchmark given: add a [[benchmarks]] table with name, kind and dataset, or --benchmarks"),
    ):
        if not value:
            raise ClipEvalError(f"no {advice}")
    check_names(config.benchmarks)


def _measure(benchmark: BenchmarkConfig, manifest: Manifest, data: Any, name: str, embedder: FileEmbedder) -> list[Row]:
    """Returns the rows of a benchmark whose protocol has this fingerprint, and writes its details."""
    precision, batch_size, limit = benchmark.precision, benchmark.batch_size, benchmark.max_corrupt
    images = embedder.images(manifest, precision=precision, batch_size=batch_size, max_corrupt=limit)
    outcome = benchmark.measure(images, embedder, data)
    about = {"benchmark": benchmark.name, "kind": benchmark.kind}
    place = {"dataset": benchmark.dataset, "selection": benchmark.selection}
    details = {**about, **place, "fingerprint": name, **outcome.details}
    embedder.store.write_json(details_file(benchmark.name), details)
    made = {"model": embedder.path, "model_sha256": embedder.model_sha256, "fingerprint": name}
    shared = {**outcome.counts, "corrupt": images.corrupt, "precision": precision, **made}
    dataset = ":".join(filter(None, place.values()))
    return [{**about, "dataset": dataset, **asdict(metric), **shared} for metric in outcome.metrics]


def _fingerprint(benchmark: BenchmarkConfig, manifest: Manifest, data: Any, embedder: FileEmbedder) -> str:
    """Names the protocol of rows: data, model (with preprocessing and tokenizer), prompts, precision, code."""
    about = {"manifest": manifest.fingerprint, "model": embedder.model_sha256, "code": code_version()}
    # The module of a user-defined kind decides its numbers too. A class of a notebook has no file.
    file = getattr(sys.modules[type(benchmark).__module__], "__file__", None)
    return fingerprint({**benchmark.protocol(data), **about, "source": sha256_of(file) if file else ""})
