"""Samples per second of the sample stream and of webdataset's loader, on the same shards with the same preprocess.

    uv run python -m tests.benchmarks.stream_vs_webdataset [--samples 3000] [--workers 1] [--batch 256]

Both decode, resize and batch; webdataset shuffles with its buffers, the stream in its fixed order. The first row is
what one core can do at most: Pillow on payloads that lie in memory.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from clip_data.dataset import Dataset
from clip_data.stream import SampleStream, Source, build_manifest
from clip_data.stream.preprocess import parse_preprocess
from tests.support.datasets import make_dataset
from tests.support.streams import letters

PREPROCESS = {"size": [224, 224], "augment": {"scale": [0.9, 1.0]}}


def build(root: str, samples: int) -> Dataset:
    """Smooth 288 × 256 images with some grain: JPEGs of about 25 kB, as photographs of that size have."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(samples):
        small = Image.fromarray(rng.integers(0, 256, (9, 8, 3), dtype=np.uint8))
        smooth = np.asarray(small.resize((288, 256), Image.Resampling.BICUBIC)).astype(np.int16)
        grain = smooth + rng.integers(-12, 13, smooth.shape)
        rows.append({"image": Image.fromarray(grain.clip(0, 255).astype(np.uint8)), "caption": f"picture {number}"})
    return make_dataset(root, rows, rows_per_unit=500)


def pillow(dataset: Dataset, seconds: float) -> float:
    """Decode, crop and resize in one process."""
    unit = dataset.units[0]
    tar = dataset.store.read_bytes(unit.shard_name)
    table = dataset.sidecar(unit, ["image_offset", "image_length"]).to_pylist()
    payloads = [tar[row["image_offset"] :][: row["image_length"]] for row in table]
    preprocess = parse_preprocess(PREPROCESS)
    images = np.empty((len(payloads), 3, 224, 224), np.uint8)
    done, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        images[done % len(payloads)] = preprocess.decode(payloads[done % len(payloads)], done).transpose(2, 0, 1)
        done += 1
    return done / (time.perf_counter() - started)


def rate(batches: Iterable, batch: int, seconds: float) -> float:
    """Samples per second after a warm-up of five batches."""
    iterator = iter(batches)
    for _ in range(5):
        next(iterator)
    done, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        next(iterator)
        done += batch
    return done / (time.perf_counter() - started)


def webdataset_loader(dataset: Dataset, batch: int, workers: int) -> Iterable:
    import webdataset

    preprocess = parse_preprocess(PREPROCESS)
    shards = [dataset.store.full(unit.shard_name) for unit in dataset.units]

    def prepare_image(sample: tuple[bytes, bytes]) -> tuple[np.ndarray, np.ndarray]:
        image = preprocess.decode(sample[0], 0).transpose(2, 0, 1)
        return np.ascontiguousarray(image), letters([sample[1].decode()])[0]

    samples = (
        webdataset.WebDataset(shards, resampled=True, shardshuffle=False, nodesplitter=webdataset.split_by_node)
        .shuffle(1000)
        .to_tuple("jpg", "txt")
        .map(prepare_image)
        .batched(batch)
    )
    return webdataset.WebLoader(samples, batch_size=None, num_workers=workers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=3000)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=8.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        dataset = build(str(Path(folder) / "data"), options.samples)
        manifest = build_manifest([Source(dataset=dataset.url)])
        best = pillow(dataset, options.seconds)
        print(f"Pillow, one process    {best:8.0f} samples/s")
        for workers in sorted({0, options.workers}):
            with SampleStream(
                manifest,
                preprocess=PREPROCESS,
                tokenizer=letters,
                global_batch_size=options.batch,
                workers=workers,
            ) as stream:
                cpu = time.process_time()
                found = rate(stream, options.batch, options.seconds)
                cost = 1000 * (time.process_time() - cpu) / int(stream.stats["batches"])
            share = 100 * found / best / max(workers, 1)
            print(f"SampleStream, {workers} workers {found:8.0f} samples/s, {share:.0f} % of Pillow per process")
            if workers:
                print(f"  its main process     {cost:8.1f} ms of CPU per batch of {options.batch}")
        found = rate(webdataset_loader(dataset, options.batch, options.workers), options.batch, options.seconds)
        share = 100 * found / best / max(options.workers, 1)
        print(f"webdataset, {options.workers} workers   {found:8.0f} samples/s, {share:.0f} % of Pillow per process")
    print(f"peak memory            {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:8.0f} MB")


if __name__ == "__main__":
    main()
