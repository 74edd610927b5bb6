"""Builds small dataset folders straight from images and captions: no URL is fetched, no stage is run."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from clip_data.dataset import SUCCESS, Dataset, Unit, sidecar_schema
from clip_data.tables import write_table
from clip_data.uid import uid

SIDECAR_SCHEMA = sidecar_schema()
OWN = frozenset({"url", "caption", "image", "error"})
EXTENSIONS = {"image": "jpg", "text": "txt", "json": "json"}
ACQUIRE = {"made_by": "tests.support.datasets"}


def make_image(seed: int, size: tuple[int, int] = (96, 64)) -> Image.Image:
    """A smooth coloured image: a 6 × 6 random grid, enlarged."""
    grid = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(grid).resize(size, Image.Resampling.BICUBIC)


def jpeg(image: Image.Image, quality: int = 95) -> bytes:
    """The image as JPEG bytes."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def make_dataset(root: Any, samples: Sequence[Mapping[str, Any]], rows_per_unit: int = 8) -> Dataset:
    """A dataset whose acquire stage is finished, one row per sample.

    A sample has `image` (a PIL image, stored as JPEG; bytes, stored as they are, so that damaged images can be
    planted; None for a rejected row), `caption`, and optionally `url`, `error` (the code of a rejected row, "http_404"
    by default). Its other keys become extra columns of the sidecar; a key that names a sidecar column overrides it.
    """
    units = [
        Unit(
            ordinal=ordinal,
            source="samples.parquet",
            row_group=0,
            row_start=start,
            rows=min(rows_per_unit, len(samples) - start),
        )
        for ordinal, start in enumerate(range(0, len(samples), rows_per_unit))
    ]
    dataset = Dataset.create(str(root), units, {"sources": [{"name": "samples.parquet", "rows": len(samples)}]})
    fingerprint = dataset.open_stage("acquire", ACQUIRE)
    extra = {
        name: pa.array([sample.get(name) for sample in samples]).type
        for name in dict.fromkeys(name for sample in samples for name in sample)
        if name not in OWN and name not in SIDECAR_SCHEMA.names
    }
    for unit in units:
        members = samples[unit.row_start : unit.row_start + unit.rows]
        _write_unit(dataset, unit, members, unit.row_start, extra, fingerprint)
    return dataset


def _write_unit(
    dataset: Dataset,
    unit: Unit,
    samples: Sequence[Mapping[str, Any]],
    start: int,
    extra: Mapping[str, pa.DataType],
    fingerprint: str,
) -> None:
    rows = []
    counts: dict[str, int] = {}
    shard = io.BytesIO()
    with tarfile.open(fileobj=shard, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for row, sample in enumerate(samples):
            rows.append(_write_sample(tar, unit.key(row), f"http://pictures.test/{start + row}.jpg", sample))
            code = SUCCESS if rows[-1]["status"] == SUCCESS else rows[-1]["error"]
            counts[code] = counts.get(code, 0) + 1
    schema = pa.schema([*SIDECAR_SCHEMA, *extra.items()])
    dataset.store.write_bytes(unit.shard_name, shard.getvalue())
    write_table(dataset.store, unit.sidecar_name, pa.Table.from_pylist(rows, schema=schema))
    files = {}
    for name in (unit.shard_name, unit.sidecar_name):
        data = dataset.store.read_bytes(name)
        files[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    record = {"unit": unit.name, "stage": "acquire", "fingerprint": fingerprint, "rows": unit.rows, "counts": counts}
    dataset.commit("acquire", unit, {**record, "files": files, "seconds": 0.0})


def _write_sample(tar: tarfile.TarFile, key: str, url: str, sample: Mapping[str, Any]) -> dict[str, Any]:
    url, caption, image = sample.get("url", url), sample["caption"], sample["image"]
    row = {"uid": uid(url, caption), "key": key, "url": url, "caption": caption, "redirects": 0}
    own = {name: value for name, value in sample.items() if name not in OWN}
    if image is None:
        return {**row, "status": "rejected", "error_class": "http", "error": sample.get("error", "http_404"), **own}
    size = (None, None) if isinstance(image, bytes) else image.size
    data = image if isinstance(image, bytes) else jpeg(image)
    row |= {
        "status": SUCCESS,
        "http_status": 200,
        "content_type": "image/jpeg",
        "bytes": len(data),
        "sha256": hashlib.sha256(data).digest(),
        "original_format": "JPEG",
        "original_width": size[0],
        "original_height": size[1],
        "exif_orientation": 1,
        "width": size[0],
        "height": size[1],
        "image_ext": "jpg",
    }
    description = {"key": key, "url": url, "caption": caption, "width": size[0], "height": size[1]}
    contents = {"image": data, "text": caption.encode(), "json": json.dumps(description, sort_keys=True).encode()}
    for member, content in contents.items():
        info = tarfile.TarInfo(f"{key}.{EXTENSIONS[member]}")
        info.size = len(content)
        row[f"{member}_offset"], row[f"{member}_length"] = tar.offset + tarfile.BLOCKSIZE, len(content)
        tar.addfile(info, io.BytesIO(content))
    return {**row, **own}
