"""The acquire stage: turns the URLs of a unit into a shard, and a sidecar with a row for each URL."""

from __future__ import annotations

import asyncio
import datetime
import decimal
import hashlib
import json
import logging
import math
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from clip_data.acquire.codes import OUR_OWN
from clip_data.acquire.config import AcquireConfig
from clip_data.acquire.shard import TarWriter, verify
from clip_data.dataset import ACQUIRE, SUCCESS, Dataset, Unit, sidecar_schema, tar_members
from clip_data.errors import ClipDataError
from clip_data.plan import read_unit_rows
from clip_data.stage import UnitResult
from clip_data.tables import table_bytes
from clip_data.uid import uid

if TYPE_CHECKING:
    import pyarrow as pa

    from clip_data.acquire.fetch import Fetcher

log = logging.getLogger(__name__)
REJECTED = "rejected"
# Rows started at a time, per slot for a fetch: rows that wait for a busy host must not block the others.
ROWS_PER_SLOT = 8
MEASURED = ("original_format", "original_width", "original_height", "exif_orientation", "width", "height")


@dataclass(frozen=True)
class AcquireStage:
    """The stage "acquire" of the dataset at a URL: writes shards/<unit>.tar and shards/<unit>.parquet.

    The bytes depend on the rows, the config and the answers of the servers, not on timing. Raises ClipDataError if the
    source has changed or the disk is full. An error of a single row is not raised: the row is counted under its code,
    or as `unexpected:<exception type>`.
    """

    dataset: str
    acquire: AcquireConfig

    @property
    def name(self) -> str:
        return ACQUIRE

    @property
    def config(self) -> dict[str, Any]:
        return self.acquire.identity()

    def __call__(self, unit: Unit) -> UnitResult:
        dataset = Dataset.open(self.dataset)
        source = read_unit_rows(dataset, unit)
        with dataset.store.staging() as folder:
            shard, sidecar = folder / "shard.tar", folder / "sidecar.parquet"
            with (folder / "spool").open("w+b") as spool:
                rows = asyncio.run(_fetch_all(source, self.acquire, spool))
                table, digest = _write_shard(shard, unit, source, rows, spool)
            data = table_bytes(table)
            sidecar.write_bytes(data)
            verify(shard, digest, [member for row in rows if row["status"] == SUCCESS for member in tar_members(row)])
            files = {
                unit.shard_name: {"bytes": shard.stat().st_size, "sha256": digest},
                unit.sidecar_name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()},
            }
            dataset.drop_scores(unit)
            dataset.store.publish(shard, unit.shard_name)
            dataset.store.publish(sidecar, unit.sidecar_name)
        return UnitResult(counts=Counter(row["error"] or SUCCESS for row in rows), files=files)


async def _fetch_all(source: pa.Table, config: AcquireConfig, spool: IO[bytes]) -> list[dict[str, Any]]:
    """Returns the sidecar's fields for every row, in order. Images are written to `spool` as they arrive, so that
    slow rows do not delay others and memory does not grow with the unit.
    """
    from clip_data.acquire.fetch import Fetcher
    from clip_data.acquire.image import own_pixel_limit

    urls = _values(source, "url")
    rows: list[dict[str, Any]] = [{} for _ in urls]
    begun = asyncio.Semaphore(ROWS_PER_SLOT * config.concurrency)
    with own_pixel_limit(), ThreadPoolExecutor(config.decode_threads, thread_name_prefix="decode") as threads:

        async def run(row: int) -> None:
            try:
                rows[row] = await _fetch_one(urls[row], fetcher, threads, spool)
            except Exception as error:
                rows[row] = _unexpected(error, urls[row])
            finally:
                begun.release()

        try:
            async with Fetcher(config) as fetcher, asyncio.TaskGroup() as group:
                for row in range(len(urls)):
                    await begun.acquire()
                    group.create_task(run(row))
        except BaseExceptionGroup as several:
            raise several.exceptions[0] from None  # the first one has cancelled the others
    return rows


def _unexpected(error: Exception, url: str | None) -> dict[str, Any]:
    """Returns the row of an exception that has no code, so that a bug rejects a row and does not end the run. Errors
    of this machine are raised again.
    """
    if isinstance(error, (MemoryError, ClipDataError)) or (isinstance(error, OSError) and error.errno in OUR_OWN):
        raise error
    name = f"unexpected:{type(error).__name__}"
    log.warning("%.200r is rejected as %s: %.200s", url, name, error, exc_info=log.isEnabledFor(logging.DEBUG))
    return {"status": REJECTED, "error_class": "unexpected", "error": name}


async def _fetch_one(
    url: str | None, fetcher: Fetcher, threads: ThreadPoolExecutor, spool: IO[bytes]
) -> dict[str, Any]:
    from clip_data.acquire.image import prepare_image

    async with fetcher.fetch(url) as result:
        row: dict[str, Any] = {
            "http_status": result.http_status,
            "optout": result.opt_out,
            "redirects": result.redirects,
            "content_type": result.content_type,
        }
        code = result.code
        if result.body is not None:
            work = asyncio.get_running_loop().run_in_executor
            row["bytes"] = len(result.body)
            row["sha256"] = hashlib.sha256(result.body).digest()
            image = await work(threads, prepare_image, result.body, fetcher.config)
            code = image.code
            row |= {name: getattr(image, name) for name in MEASURED}
            if image.data is not None:
                row["image_ext"] = image.extension
                row["spooled"] = (spool.tell(), len(image.data))
                spool.write(image.data)
    row["status"] = REJECTED if code else SUCCESS
    row["error_class"] = code.error_class if code else None
    row["error"] = code.value if code else None
    return row


def _write_shard(
    path: Path, unit: Unit, source: pa.Table, rows: list[dict[str, Any]], spool: IO[bytes]
) -> tuple[pa.Table, str]:
    """Writes the tar in the order of the source; returns the sidecar's table and the tar's SHA-256."""
    import pyarrow as pa

    extra = [name for name in source.column_names if name not in ("url", "caption")]
    columns = [_values(source, name) for name in source.column_names]
    with TarWriter(path) as tar:
        for number, (row, *fields) in enumerate(zip(rows, *columns, strict=True)):
            key, given = unit.key(number), dict(zip(source.column_names, fields, strict=True))
            row.update(uid=uid(given["url"], given["caption"]), key=key, url=given["url"], caption=given["caption"])
            if row["status"] != SUCCESS:
                continue
            offset, length = row["spooled"]
            spool.seek(offset)
            values = {name: row[name] for name in ("uid", "key", "url", "caption", "sha256", *MEASURED)}
            values.update({name: given[name] for name in extra})
            payloads = {
                "image": (row["image_ext"], spool.read(length)),
                "text": ("txt", (given["caption"] or "").encode()),
                "json": ("json", json.dumps(_plain(values), ensure_ascii=False, sort_keys=True).encode()),
            }
            for part, (extension, payload) in payloads.items():
                row[f"{part}_offset"], row[f"{part}_length"] = tar.add(f"{key}.{extension}", payload)
    table = pa.Table.from_pylist(rows, schema=sidecar_schema())
    for name in extra:
        table = table.append_column(source.schema.field(name), source[name])
    return table, tar.sha256


def _values(source: pa.Table, name: str) -> list[Any]:
    """Returns a column's values; as text if they are beyond Python's dates (the year 10,000)."""
    import pyarrow as pa

    column = source[name]
    try:
        try:
            values: list[Any] = column.to_pylist()
        except OverflowError:
            values = column.cast(pa.string()).to_pylist()
        return values
    except (ValueError, LookupError, pa.ArrowException) as error:
        advice = "convert the column in the source, or leave it out"
        raise ClipDataError(f"column {name!r} holds a value that cannot be read: {error}; {advice}") from error


def _plain(value: Any) -> Any:
    """Returns the value in JSON types: bytes in hex digits, dates by ISO 8601, NaN and infinities as null."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, (decimal.Decimal, datetime.timedelta)):
        return str(value)
    return value
