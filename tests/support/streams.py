"""Datasets, preprocessing and tokenizers for stream tests; worker processes import the tokenizers from here."""

from __future__ import annotations

import os
import signal
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from clip_data.dataset import Dataset
from tests.support.datasets import jpeg, make_dataset

EVAL = {"size": [16, 16], "resize_mode": "squash", "augment": None}
TRAIN = {**EVAL, "augment": {"scale": [0.3, 1.0], "hflip": 0.5}}
GARBAGE = b"not a picture at all"


def make_image(seed: int) -> Image.Image:
    """A 24 × 20 image of its own."""
    noise = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((24, 20), Image.Resampling.BICUBIC)


def stream_dataset(
    root: Any, samples: int = 90, rows_per_unit: int = 8, corrupt: Collection[int] = (), seed: int = 0
) -> Dataset:
    """A dataset of numbered captions; every eleventh row was rejected, rows in `corrupt` hold damaged images.

    Damage changes neither uids nor the number of samples. Column `number` is the row's own number.
    """
    damage = [lambda data: GARBAGE, lambda data: data[: len(data) // 2], lambda data: b""]
    rows = []
    for number in range(samples):
        image: Any = make_image(1000 * seed + number)
        if number in corrupt:
            image = damage[number % len(damage)](jpeg(image))
        if number % 11 == 5:
            image = None
        rows.append({"image": image, "caption": f"picture number {number}", "number": number})
    return make_dataset(str(root), rows, rows_per_unit=rows_per_unit)


def letters(captions: list[str]) -> np.ndarray:
    """A tokenizer: the code points of the first 24 characters, int64 [n, 24]."""
    return np.array([[ord(letter) for letter in caption.ljust(24)[:24]] for caption in captions], np.int64)


def deadly(captions: list[str]) -> np.ndarray:
    """A tokenizer that kills its process, unless it is asked for a single caption as the main process does."""
    if len(captions) > 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return letters(captions)


def sleepy(captions: list[str]) -> np.ndarray:
    """A tokenizer that never comes back in a worker."""
    if len(captions) > 1:
        signal.pause()
    return letters(captions)


def buggy(captions: list[str]) -> np.ndarray:
    """A tokenizer with a bug that shows on more than one caption."""
    return letters(captions) if len(captions) == 1 else letters([captions[len(captions)]])


def content(batches: Iterable[dict[str, Any]]) -> list[tuple[list[str], bytes, bytes]]:
    """What the batches hold, for comparisons."""
    return [(batch["uid"], batch["image"].tobytes(), np.asarray(batch["text"]).tobytes()) for batch in list(batches)]


def children(pid: int) -> list[int]:
    """Child processes of a process."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += map(int, (task / "children").read_text().split())
    return found


def alive(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
