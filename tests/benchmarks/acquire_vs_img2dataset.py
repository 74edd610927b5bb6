"""Fetch rate of the acquire stage beside img2dataset's: the same images from the same loopback server, both on all
cores of this machine, the server included.

    uv run tests/benchmarks/acquire_vs_img2dataset.py [--images 2000] [--workers 2]

"whole" counts from the start of the command to its end; "steady" is what the server saw between its first and its last
request, without anybody's start-up. CPU time is that of the engine's processes, start-up included.
"""

import argparse
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

ROOT = Path(__file__).parents[2]
FORMS = ("jpg", "jpg", "jpg", "jpg", "jpg", "jpg", "png", "webp")  # shares as on the web, roughly
SIZE = 256


def draw(number: int) -> tuple[str, bytes]:
    """An image of 300 to 1200 pixels a side, textured so that it has the bytes of a photo."""
    from tests.support.images import encode, noise

    random = np.random.default_rng(number)
    width, height = random.integers(300, 1200, 2).tolist()
    form = FORMS[number % len(FORMS)]
    image = noise(width, height, number)
    if form != "png":
        grain = random.normal(0, 4, (height, width, 1))
        image = Image.fromarray((np.asarray(image) + grain).clip(0, 255).astype(np.uint8))
    options = {} if form == "png" else {"quality": 80}
    return f"{number:06d}.{form}", encode(image, {"jpg": "JPEG"}.get(form, form.upper()), **options)


def serve(images: list[tuple[str, bytes]], port: Synchronized, first: Synchronized, last: Synchronized) -> None:
    from tests.support.hostile_server import HostileServer

    server = HostileServer()
    for name, body in images:
        server.put(name, body)
    with server.running():
        port.value = server.port
        seen = 0
        while True:
            time.sleep(0.01)
            if len(server.requests) > seen:
                seen = len(server.requests)
                last.value = time.time()
                first.value = first.value or last.value


def ours(urls: Path, out: Path, workers: int) -> None:
    from clip_data.acquire import AcquireConfig, AcquireStage
    from clip_data.executors import ExecutorConfig, make_executor
    from clip_data.plan import PlanConfig, plan
    from clip_data.stage import run_stage

    config = AcquireConfig(image_size=SIZE, allow_private=True, per_host=64)
    dataset = plan(str(out), PlanConfig(urls=(str(urls),), rows_per_unit=250))
    with make_executor(ExecutorConfig(workers=workers)) as executor:
        counts = run_stage(dataset, AcquireStage(str(out), config), executor, progress=False)
    print("counts", counts)


def theirs(urls: Path, out: Path, workers: int) -> None:
    from img2dataset import download

    download(
        url_list=str(urls), input_format="parquet", url_col="url", caption_col="caption", output_format="webdataset",
        output_folder=str(out), processes_count=workers, thread_count=32, image_size=SIZE, resize_mode="keep_ratio",
        resize_only_if_bigger=True, number_sample_per_shard=250,
    )  # fmt: skip


ENGINES = {"clip-data": ours, "img2dataset": theirs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--engine", choices=[*ENGINES, "both"], default="both")
    parser.add_argument("--paths", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.paths:
        ENGINES[args.engine](Path(args.paths[0]), Path(args.paths[1]), args.workers)
        return
    with ProcessPoolExecutor() as pool:
        images = list(pool.map(draw, range(args.images), chunksize=50))
    megabytes = sum(len(body) for _, body in images) / 1e6
    print(f"{args.images} images, {megabytes:.0f} MB; {args.workers} workers on {os.cpu_count()} cores")
    print(f"{'engine':<14}{'whole/s':>9}{'steady/s':>10}{'seconds':>9}{'CPU ms each':>13}{'peak MB of one':>16}")
    for engine in ENGINES if args.engine == "both" else [args.engine]:
        with tempfile.TemporaryDirectory() as folder:
            measure(engine, images, Path(folder), args.workers)


def measure(engine: str, images: list[tuple[str, bytes]], folder: Path, workers: int) -> None:
    context = multiprocessing.get_context("fork")
    port, first, last = context.Value("i", 0), context.Value("d", 0), context.Value("d", 0)
    server = context.Process(target=partial(serve, images, port, first, last), daemon=True)
    server.start()
    while not port.value:
        time.sleep(0.01)
    urls = [f"http://127.0.0.1:{port.value}/body/{name}" for name, _ in images]
    pq.write_table(pa.table({"url": urls, "caption": ["a picture"] * len(urls)}), folder / "urls.parquet")
    command = [sys.executable, __file__, "--engine", engine, "--workers", str(workers)]
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.time()
    done = subprocess.run(
        [*command, "--paths", str(folder / "urls.parquet"), str(folder / "out")],
        env={**os.environ, "NO_ALBUMENTATIONS_UPDATE": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    wall, after = time.time() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    server.terminate()
    server.join()
    if done.returncode:
        sys.exit(f"{engine} failed:\n{done.stdout}\n{done.stderr}")
    stored = sum(pq.read_table(file, columns=["status"])["status"].to_pylist().count("success")
                 for file in (folder / "out").rglob("[0-9]*.parquet"))  # fmt: skip
    if stored != len(images):
        sys.exit(f"{engine} stored {stored} of {len(images)} images")
    cpu = (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) * 1000 / len(images)
    steady = len(images) / (last.value - first.value)
    peak = after.ru_maxrss / 1024
    print(f"{engine:<14}{len(images) / wall:>9.0f}{steady:>10.0f}{wall:>9.1f}{cpu:>13.1f}{peak:>16.0f}")


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
