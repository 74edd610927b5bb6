"""What tests of embedding, scoring and classification share: a small model file, and sources of every kind."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from clip_models import create_model, save_model
from tests.support.images import encode, noise

MODEL = "ViT-Ti-4-24"
CAPTIONS = ["a red circle", "two blue squares above a star", "green", "nothing at all"]


def model_file(folder: Path, seed: int = 0) -> Path:
    """The weights of a small model."""
    path = folder / f"tiny-{seed}.safetensors"
    model = create_model(MODEL, seed=seed)
    save_model(path, model, model.spec)
    return path


def image_bytes(number: int) -> bytes:
    """One of many small images, all different."""
    return encode(noise(40 + number % 7, 30 + number % 5, seed=number), "PNG" if number % 3 else "JPEG")


def caption(number: int) -> str:
    return f"{CAPTIONS[number % len(CAPTIONS)]} {number}"


def folder(root: Path, count: int, captions: bool = False) -> Path:
    """Images in nested folders."""
    for number in range(count):
        path = root / f"{number // 4:02}" / f"{number:04}.{'png' if number % 3 else 'jpg'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image_bytes(number))
        if captions:
            path.with_suffix(".txt").write_text(caption(number))
    return root


def tar(path: Path, numbers: Sequence[int], mode: str = "w") -> Path:
    """webdataset's layout, with images and captions."""
    with tarfile.open(path, mode) as archive:
        for number in numbers:
            image = image_bytes(number)
            members = {"jpg" if image[:2] == b"\xff\xd8" else "png": image, "txt": caption(number).encode()}
            for extension, data in {**members, "json": b"{}"}.items():
                info = tarfile.TarInfo(f"{number:06}.{extension}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return path


def table(path: Path, numbers: Sequence[int], rows_per_group: int = 5) -> Path:
    """A parquet table with keys, images as bytes, and captions."""
    columns = {
        "key": [f"{number:06}" for number in numbers],
        "image": [image_bytes(number) for number in numbers],
        "caption": [caption(number) for number in numbers],
    }
    pq.write_table(pa.table(columns), path, row_group_size=rows_per_group)
    return path
