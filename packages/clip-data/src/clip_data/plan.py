"""Plans a dataset: divides tables of URLs into units of work, by the metadata of the tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from clip_core.config import to_dict
from clip_core.store import Store
from clip_data import sources
from clip_data.dataset import MAX_ROWS_PER_UNIT, SIDECAR_COLUMNS, Dataset, Unit, is_dataset, is_planned, source_name
from clip_data.errors import ClipDataError
from clip_data.text_tables import convert

if TYPE_CHECKING:
    import pyarrow as pa

READ_ROWS = 8192  # rows decoded at a time to reach a unit inside a large row group


@dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """Which tables of URLs make a dataset, and how large its units are."""

    urls: tuple[str, ...]
    """tables of URLs: paths, fsspec URLs or globs of .parquet, .csv, .tsv or .jsonl files (text also .gz)"""
    url_column: str = "url"
    """column with the URL of the image"""
    caption_column: str = "caption"
    """column with the caption"""
    extra_columns: tuple[str, ...] = ()
    """further columns to copy to the sidecars, with their types"""
    rows_per_unit: int = 10_000
    """maximum number of rows in a unit, which becomes a shard"""

    def __post_init__(self) -> None:
        if not self.urls:
            raise ClipDataError("urls is empty: name at least one table of URLs")
        if self.url_column == self.caption_column:
            raise ClipDataError(f"url_column and caption_column are both {self.url_column!r}: name two columns")
        if not 1 <= self.rows_per_unit <= MAX_ROWS_PER_UNIT:
            raise ClipDataError(f"rows_per_unit = {self.rows_per_unit} must be between 1 and {MAX_ROWS_PER_UNIT}")
        for name in self.extra_columns:
            if name in SIDECAR_COLUMNS:
                raise ClipDataError(f"extra column {name!r} has the name of a sidecar column: rename it in the source")
        if len(set(self.extra_columns)) != len(self.extra_columns):
            raise ClipDataError(f"extra_columns names a column twice: {', '.join(self.extra_columns)}")


def plan(url: str, config: PlanConfig) -> Dataset:
    """Plans the dataset at an fsspec URL, or opens it if it has the same plan.

    Parquet sources are not copied: only their footers are read. Text sources are converted once, to
    `sources/<n>.parquet` in the dataset. Raises ClipError for invalid sources, and for a folder with another plan.
    """
    urls = [found for pattern in config.urls for found in sources.find(pattern)]
    if len(set(urls)) < len(urls):
        raise ClipDataError(f"urls names {next(found for found in urls if urls.count(found) > 1)} twice")
    store = Store(url)
    with ThreadPoolExecutor(16) as pool:  # remote files: the time is latency
        entries = list(pool.map(lambda source: {"url": source, **sources.identity(source)}, urls))
    columns = {"url": config.url_column, "caption": config.caption_column, "extra": list(config.extra_columns)}
    description = {"sources": entries, "columns": columns, "config": to_dict(config)}
    if is_dataset(store):
        planned = Dataset.open(url).description
        description["sources"] = planned.get("sources")
        dataset = Dataset.create(url, [], description)  # raises for another config
        _check_same_sources(url, planned["sources"], entries)
        return dataset
    is_planned(store, description)  # raises for a folder with other files, before conversions are written
    for number, entry in enumerate(entries):
        if sources.table_format(entry["url"]) != "parquet":
            name = source_name(number)
            texts = (config.url_column, config.caption_column)
            convert(entry["url"], store, name, texts, config.extra_columns, config.rows_per_unit)
            entry["table"] = {"name": name, **sources.identity(f"{store.url}/{name}")}
    with ThreadPoolExecutor(16) as pool:
        footers = list(pool.map(lambda entry: _footer(store, entry, config), entries))
    units: list[Unit] = []
    types: dict[str, tuple[Any, str]] = {}
    for entry, (groups, extra_types) in zip(entries, footers, strict=True):
        entry["rows"] = sum(groups)
        for name, kind in extra_types.items():
            first, where = types.setdefault(name, (kind, entry["url"]))
            if kind != first:
                differ = f"column {name!r} holds {first} in {where} but {kind} in {entry['url']}"
                raise ClipDataError(f"{differ}: use one type, or plan each file into a separate folder")
        for group, rows in enumerate(groups):
            for start in range(0, rows, config.rows_per_unit):
                size = min(config.rows_per_unit, rows - start)
                unit = Unit(ordinal=len(units), source=_source(entry), row_group=group, row_start=start, rows=size)
                units.append(unit)
    if not units:
        raise ClipDataError(f"{', '.join(config.urls)}: an empty table, it has no rows")
    return Dataset.create(url, units, description)


def read_unit_rows(dataset: Dataset, unit: Unit) -> pa.Table:
    """Returns the unit's rows of its source: columns url and caption (strings), then the extra columns.

    Raises ClipDataError if the source is missing, damaged, or has changed since it was planned, and if a string is not
    UTF-8.
    """
    import pyarrow as pa

    columns = dataset.description["columns"]
    entry = next(entry for entry in dataset.description["sources"] if unit.source == _source(entry))
    location = _location(dataset.store, entry)
    sources.check_unchanged(location, entry.get("table", entry)["fingerprint"])
    names = list(dict.fromkeys([columns["url"], columns["caption"], *columns["extra"]]))
    end = unit.row_start + unit.rows
    position, parts = 0, []
    with sources.parquet_file(location) as parquet:
        schema = pa.schema([parquet.schema_arrow.field(name) for name in names])
        groups = (parquet.metadata.row_group(index).num_rows for index in range(unit.row_group))
        first = sum(groups) + unit.row_start
        batches = parquet.iter_batches(READ_ROWS, row_groups=[unit.row_group], columns=names, use_threads=False)
        for batch in batches:
            start, stop = max(unit.row_start - position, 0), min(end - position, batch.num_rows)
            if start < stop:
                parts.append(batch.select(names).slice(start, stop - start))
            position += batch.num_rows
            if position >= end:
                break
        table = pa.Table.from_batches(parts, schema=schema)
        result = {text: table[columns[text]].cast(pa.string()) for text in ("url", "caption")}
        for name in names:
            sources.check_utf8(location, name, table[name], first)
    if table.num_rows != unit.rows:
        raise ClipDataError(f"{location} is damaged: unit {unit.name} has {table.num_rows} of {unit.rows} rows")
    return pa.table(result | {name: table[name] for name in columns["extra"]})


def _footer(store: Store, entry: Mapping[str, Any], config: PlanConfig) -> tuple[list[int], dict[str, Any]]:
    """Returns the rows of each row group, and the types of the extra columns."""
    with sources.parquet_file(_location(store, entry)) as parquet:
        schema, metadata = parquet.schema_arrow, parquet.metadata
        if metadata.num_rows == 0:
            return [], {}  # without rows, many writers leave the types undefined
        texts = (config.url_column, config.caption_column)
        sources.check_columns(entry["url"], schema.names, texts, config.extra_columns)
        sources.check_strings(entry["url"], schema, texts)
        groups = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
        return groups, {name: schema.field(name).type for name in config.extra_columns}


def _source(entry: Mapping[str, Any]) -> str:
    """Returns the source of units: its URL, or the name of its conversion relative to the dataset."""
    source: str = entry["table"]["name"] if "table" in entry else entry["url"]
    return source


def _location(store: Store, entry: Mapping[str, Any]) -> str:
    return f"{store.url}/{_source(entry)}" if "table" in entry else entry["url"]


def _check_same_sources(dataset: str, planned: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]]) -> None:
    before = {entry["url"]: entry["fingerprint"] for entry in planned}
    after = {entry["url"]: entry["fingerprint"] for entry in now}
    for url in sorted({*before, *after}):
        if before.get(url) != after.get(url):
            what = "is new" if url not in before else "is gone" if url not in after else "has changed"
            changed = f"the source {url} {what} since it was planned"
            raise ClipDataError(f"{dataset} holds another dataset: {changed}; choose another folder or remove it")
