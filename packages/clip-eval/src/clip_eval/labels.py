"""The classes of a zero-shot benchmark and the class of each sample, read and checked before anything is embedded."""

import json
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from clip_core import ClipError
from clip_core.config import from_dict, unique_keys
from clip_core.suggest import did_you_mean
from clip_data.dataset import Dataset
from clip_data.stream import Manifest
from clip_eval.benchmarks.zeroshot import ZeroShotConfig
from clip_eval.errors import ClipEvalError
from clip_eval.results import file_in_store

UNLABELLED, OTHER = -1, -2
WAY_OUT = "list the class names with classes (a name's position is its id) or with classes_file"


@dataclass(frozen=True, kw_only=True)
class ClassRow:
    """One class of a benchmark; a line of a classes_file."""

    id: int
    """The value of an integer label; in a file it defaults to the row's position, from 0."""
    name: str
    """Replaces {} in the templates; matches the labels where these are strings."""
    prompts: tuple[str, ...] = ()
    """The class's own templates; empty takes the benchmark's."""


@dataclass(frozen=True, kw_only=True)
class Labels:
    """The classes of a benchmark and those of its samples."""

    classes: list[ClassRow]
    """In the order of their ids."""
    of_key: dict[str, int]
    """Key of each selected sample → index in `classes`, UNLABELLED or OTHER."""
    index: dict[Any, int] = field(default_factory=dict)
    """Label, as `plain` or as an integer → index in `classes`."""


def read_labels(config: ZeroShotConfig, manifest: Manifest) -> Labels:
    """Returns the classes of a zero-shot benchmark and the class of each sample that its manifest selects.

    String labels name a class, integer labels are ids. Raises ClipEvalError, with the column and the row, for labels of
    another type, for labels that may mean a class but do not name it, and when no sample belongs to a class.
    """
    try:
        classes = read_classes(config)
        rows = list(_values(config, manifest))
        found = [(place, label) for place, _, label in rows if label not in ("", None)]
        kinds = {type(label): (place, label) for place, label in reversed(found)}
        if not kinds:
            raise ClipEvalError(f"none of its {len(rows)} samples has a value in the column {config.label_column!r}")
        if len(kinds) > 1:
            several = " and ".join(f"{label!r} ({place})" for place, label in kinds.values())
            raise ClipEvalError(f"the column {config.label_column!r} holds both integers and strings: {several}")
        if int in kinds:
            index = _by_id(classes, found)
        else:
            classes = classes or _classes_of(config, {str(label) for _, label in found})
            index = _by_name(classes, found)
        of_key = {key: UNLABELLED if label in ("", None) else index.get(label, OTHER) for _, key, label in rows}
        if max(of_key.values()) < 0:
            raise ClipEvalError(_no_match(classes, found))
    except ClipEvalError as error:
        raise ClipEvalError(f"benchmark {config.name!r}: {error}") from error
    return Labels(classes=classes, of_key=of_key, index=index)


def read_classes(config: ZeroShotConfig) -> list[ClassRow]:
    """Returns the classes that a config lists, in the order of their ids; none if the labels define them."""
    rows = _from_file(config.classes_file) if config.classes_file else []
    rows += [ClassRow(id=position, name=name) for position, name in enumerate(config.classes)]
    named: dict[int, str] = {}
    for position, row in enumerate(rows):
        if row.id < 0:
            raise ClipEvalError(f"the class {row.name!r} has the id {row.id}: ids start at 0")
        if row.id in named:
            raise ClipEvalError(f"the classes {named[row.id]!r} and {row.name!r} both have the id {row.id}")
        if not plain(row.name) or not all(map(plain, row.prompts)):
            what = "a prompt" if plain(row.name) else "the name"
            raise ClipEvalError(f"{what} of the class at position {position} (id {row.id}) is empty")
        named[row.id] = row.name
    return sorted((replace(row, name=plain(row.name)) for row in rows), key=lambda row: row.id)


def plain(name: str) -> str:
    """Returns a name in the form that is compared and shown: NFC, and one space for each run of white space."""
    return " ".join(unicodedata.normalize("NFC", name).split())


# Unicode's categories: every dash and `_` is a space; quotation marks, control and format characters are nothing.
_LOOSE = {"Pd": " ", "Pc": " ", "Pi": "", "Pf": "", "Cc": "", "Cf": ""}
_QUOTES = "'\"`ʼ"


def _loose(name: str) -> str:
    """Returns the name without case, compatibility forms, dashes and quotation marks."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", plain(name)).casefold())
    return plain("".join("" if c in _QUOTES else _LOOSE.get(unicodedata.category(c), c) for c in folded))


def _from_file(file: str) -> list[ClassRow]:
    if not file.endswith((".txt", ".jsonl")):
        raise ClipEvalError(
            f"classes_file {file!r} must end with .txt (one name per line) or .jsonl (id, name, prompts)"
        )
    store, name = file_in_store(file)
    rows, where = [], file
    try:
        for position, line in enumerate(store.read_bytes(name).decode("utf-8-sig").removesuffix("\n").split("\n")):
            where = f"{file}, line {position + 1}"
            row = json.loads(line, object_pairs_hook=unique_keys) if file.endswith(".jsonl") else {"name": line}
            rows.append(from_dict(ClassRow, {"id": position, **row} if isinstance(row, dict) else row, where))
        return rows
    except ClipError:
        raise
    except ValueError as error:
        raise ClipEvalError(f"{where} is damaged: {error}; the file must hold one class per line") from error


def _values(config: ZeroShotConfig, manifest: Manifest) -> Iterator[tuple[str, str, str | int | None]]:
    """Yields (place, key, label) of each selected sample; a label is a plain string, an integer, or None for a null."""
    column = config.label_column
    (part,) = manifest.parts
    dataset = Dataset.open(part.source.dataset)
    known = dataset.sidecar(part.units[0]).column_names
    if column not in known:
        hint = did_you_mean(column, known, f"it has {', '.join(known)}", cutoff=0.5, spell=repr)
        raise ClipEvalError(f"{part.source.dataset} has no column {column!r}; {hint}")
    for unit in part.units:
        table = dataset.sidecar(unit, ["key", column])
        rows = np.setdiff1d(part.selection.rows(unit), part.removed.get(unit.name, []), assume_unique=True)
        keys, labels = (table[name].take(rows).to_pylist() for name in ("key", column))
        for row, key, label in zip(rows.tolist(), keys, labels, strict=True):
            place = f"row {row} of {unit.sidecar_name}"
            if label is not None and type(label) not in (int, str):
                several = "; several labels per sample are not supported" if isinstance(label, list) else ""
                raise ClipEvalError(
                    f"the column {column!r} has the type {table.schema.field(column).type}, such as {label!r} in "
                    f"{place}: a label is one string (a class name) or one integer (a class id){several}"
                )
            yield place, key, plain(label) if isinstance(label, str) else label


def _by_id(classes: Sequence[ClassRow], found: Sequence[tuple[str, Any]]) -> dict[Any, int]:
    if not classes:
        raise ClipEvalError(f"the labels are integers ({found[0][1]} in {found[0][0]}) without names: {WAY_OUT}")
    index = {row.id: i for i, row in enumerate(classes)}
    # Where the ids have gaps, the classes are some of a longer list, and other ids are classes that are not asked for.
    complete = classes[-1].id == len(classes) - 1
    for place, label in found:
        if label < 0 or (complete and label not in index):
            raise ClipEvalError(
                f"the label {label} in {place} is not the id of a class (ids: {classes[0].id} to {classes[-1].id}); "
                "use null for a sample without a label"
            )
    return index


def _classes_of(config: ZeroShotConfig, names: set[str]) -> list[ClassRow]:
    """Returns the labels that occur, sorted, as classes."""
    if all(map(_is_number, names)):
        raise ClipEvalError(
            f"the labels in the column {config.label_column!r} are numbers ({min(names)!r}, …): if they are ids, "
            f"store them as integers and {WAY_OUT}; if they are the names, list them with classes"
        )
    return [ClassRow(id=i, name=name) for i, name in enumerate(sorted(names))]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _by_name(classes: Sequence[ClassRow], found: Iterable[tuple[str, Any]]) -> dict[Any, int]:
    index = {row.name: i for i, row in enumerate(classes)}
    like: dict[str, ClassRow] = {}
    for row in classes:
        other = like.setdefault(_loose(row.name), row)
        if other is not row:
            raise ClipEvalError(
                f"the classes {other.name!r} (id {other.id}) and {row.name!r} (id {row.id}) cannot be told apart by "
                "string labels: use one spelling for one class, or give the ids as integer labels"
            )
    unknown = {label: place for place, label in found if label not in index}
    for label, place in unknown.items():
        if near := like.get(_loose(label)):
            raise ClipEvalError(
                f"the label {label!r} in {place} and the class {near.name!r} differ only in case or spelling: "
                "use one form for both"
            )
    return index


def _no_match(classes: Sequence[ClassRow], found: Sequence[tuple[str, Any]]) -> str:
    labels = sorted({label for _, label in found})
    said = f"none of its {len(found)} labelled samples belongs to one of the {len(classes)} classes"
    if not isinstance(labels[0], str):
        return f"{said}; the labels are the ids {', '.join(map(str, labels[:8]))}"
    if all(map(_is_number, labels)):
        return f"{said}; the labels are strings of digits ({labels[0]!r}): store them as integers if they are ids"
    name, shown = classes[0].name, f"the labels are {', '.join(labels[:8])}"
    return f"{said}; {did_you_mean(name, labels, shown, cutoff=0.4, spell=lambda label: f'{label!r} for {name!r}')}"
