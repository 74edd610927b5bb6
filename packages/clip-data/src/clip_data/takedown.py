"""Takedown: writes tombstones for samples given by uid, key or URL."""

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from clip_core.console import progress_bar
from clip_data.dataset import ACQUIRE, Dataset, Unit, parse_key
from clip_data.errors import ClipDataError
from clip_data.uid import canonical_url

THREADS = 8
SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class Takedown:
    """The result of a takedown."""

    uids: int
    rows: int
    """rows that the names match, rejected ones included"""
    missing: list[str]
    """names that match no row"""
    file: str
    """name of the tombstone file"""


def take_down(dataset: Dataset, samples: Sequence[str], reason: str, *, allow_missing: bool = False) -> Takedown:
    """Writes a tombstone for every sample that `samples` names: by uid, sample key or URL.

    A URL names all rows with the same canonical URL. Reads the uids and URLs of all acquired units. Raises
    ClipDataError, and writes nothing, if a name has another form or matches no row. With `allow_missing` a name may
    match no row; a uid is recorded even then, for rows that are acquired later.
    """
    if not samples:
        raise ClipDataError("a takedown needs at least one uid, key or URL")
    uids = {name for name in samples if re.fullmatch("[0-9a-f]{32}", name)}
    keys = {name for name in samples if parse_key(name)}
    urls = {name: canonical_url(name) for name in samples if "://" in name}
    if wrong := [name for name in samples if name not in uids and name not in keys and name not in urls]:
        raise ClipDataError(f"{wrong[0]!r} is neither a uid (32 hex digits), nor a key (13 digits), nor a URL")
    wanted_uids = pa.array(sorted(map(bytes.fromhex, uids)), pa.binary(16))
    wanted_keys = pa.array(sorted(keys), pa.string())
    wanted_urls = set(urls.values())

    def find(unit: Unit) -> list[dict[str, Any]]:
        table = dataset.sidecar(unit, ["uid", "key", "url"])
        hit = pc.or_(pc.is_in(table["uid"], wanted_uids), pc.is_in(table["key"], wanted_keys))
        if wanted_urls:
            same = [canonical_url(url or "") in wanted_urls for url in table["url"].to_pylist()]
            hit = pc.or_(hit, pa.array(same, pa.bool_()))
        found: list[dict[str, Any]] = table.filter(hit).to_pylist()
        return found

    done = dataset.committed(ACQUIRE)
    units = [unit for unit in dataset.units if unit.name in done]
    with ThreadPoolExecutor(THREADS) as threads:
        progress = progress_bar(threads.map(find, units), total=len(units), desc="takedown", unit=" units")
        rows = [row for matches in progress for row in matches]
    known = {name for row in rows for name in (row["uid"].hex(), row["key"], canonical_url(row["url"] or ""))}
    missing = [name for name in dict.fromkeys(samples) if urls.get(name, name) not in known]
    # Keys and URLs name rows; streams and selections exclude uids.
    found = {row["uid"].hex() for row in rows} | (uids if allow_missing else set())
    if missing and not (allow_missing and found):
        more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        names = ", ".join(missing[:SHOWN]) + more
        raise ClipDataError(f"{dataset.url} has no row for {names}; nothing was taken down: correct or omit them")
    return Takedown(uids=len(found), rows=len(rows), missing=missing, file=dataset.take_down(found, reason))
