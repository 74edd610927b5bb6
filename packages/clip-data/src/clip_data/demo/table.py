"""The quickstart's URL table: rendered scenes, mixed with the faults of real lists."""

import io
import os
import random
from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from clip_core.store import Store
from clip_data.demo.kinds import kind_counts
from clip_data.demo.scenes import Scene, scene
from clip_data.errors import ClipDataError

ROW_GROUP = 500

_COPIES = ("duplicate_row", "duplicate_bytes", "duplicate_pixels")
_PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
_MALFORMED = ("http://", "not a url", "http://127.0.0.1:99999/picture.jpg", "http://[::1/picture.jpg")


def write_table(
    path: str | os.PathLike[str], rows: int = 4000, seed: int = 0, base_url: str = "http://127.0.0.1:8765"
) -> dict[str, int]:
    """Writes the parquet file `path` (row groups of 500, atomically) and returns its rows per kind.

    Columns, all strings: `url` (may be null), `caption`, `label` (one of CLASS_NAMES or ""), `kind` (a key of KINDS).
    Row i shows scene i of `seed`, except that a duplicate shows the scene of an "ok" row. The same arguments give the
    same bytes. Raises ClipDataError when `rows` is too small for every kind to occur or `path` cannot be written.
    """
    counts = kind_counts(rows)
    rng = random.Random(f"table {seed}")
    kinds = [kind for kind, count in counts.items() for _ in range(count)]
    rng.shuffle(kinds)
    originals = [row for row, kind in enumerate(kinds) if kind == "ok"]
    # Without replacement: each original has one copy, so that dedup counts can be checked.
    copied = iter(rng.sample(originals, sum(counts[kind] for kind in _COPIES)))
    scenes = [scene(seed, next(copied) if kind in _COPIES else row) for row, kind in enumerate(kinds)]
    urls = [_url(kind, shown, base_url.rstrip("/")) for kind, shown in zip(kinds, scenes, strict=True)]
    captions, labels = [shown.caption for shown in scenes], [shown.label for shown in scenes]
    write_parquet(path, {"url": urls, "caption": captions, "label": labels, "kind": kinds})
    return counts


def _url(kind: str, shown: Scene, base_url: str) -> str | None:
    """Returns the URL of the row's image."""
    index, suffix = shown.index, shown.format.replace("jpeg", "jpg")
    odd = {
        "null_url": None,
        "empty_url": "",
        "malformed_url": _MALFORMED[index % len(_MALFORMED)],
        "scheme_ftp": f"ftp://127.0.0.1/pictures/{index}.{suffix}",
        "scheme_file": "file:///etc/hostname",
        "scheme_data": f"data:image/png;base64,{_PIXEL}",
        "nothing_listening": f"http://127.0.0.1:1/{index}.{suffix}",  # port 1 (tcpmux) has had no service for decades
    }
    served = "ok" if kind == "duplicate_row" else kind
    return odd.get(kind, f"{base_url}/{served}/{shown.seed}/{index}.{suffix}")


def write_parquet(path: str | os.PathLike[str], columns: Mapping[str, Sequence[str | None]]) -> None:
    """Writes string columns to a parquet file with row groups of ROW_GROUP rows. Raises ClipDataError."""
    table = pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=ROW_GROUP, compression="zstd")
    if os.path.isdir(path):
        raise ClipDataError(f"cannot write the table {path}: it is a folder")
    folder, slash, name = os.fspath(path).rpartition("/")  # a path, or an fsspec URL
    Store(folder or slash or ".").write_bytes(name, buffer.getvalue())
