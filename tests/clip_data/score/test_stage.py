"""clip_data.score.stage: the score stage on small dataset folders."""

import functools
import hashlib
import math
import pickle
import sys
import types
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pytest

from clip_core import ClipError
from clip_data.errors import ClipDataError
from clip_data.score import SCORERS, ScoreStage
from clip_data.stage import run_unit
from clip_data.tables import read_table
from tests.support.datasets import make_dataset, make_image

SAMPLES = [
    {"caption": f"picture number {row}", "image": None if row in (1, 4, 5) else make_image(row)} for row in range(11)
]


@dataclass(frozen=True)
class MeanScorer:
    """A scorer as another package would bring it."""

    factor: float
    name: ClassVar[str] = "mean"
    version: ClassVar[int] = 3
    needs_image: ClassVar[bool] = True
    schema: ClassVar[pa.Schema] = pa.schema([("mean", pa.float64())])

    def score(self, batch):
        assert len(batch.images) == batch.samples.num_rows
        means = [self.factor * float(np.asarray(image).mean()) for image in batch.images]
        return pa.table({"mean": means})


class ShortScorer(MeanScorer):
    def score(self, batch):
        return super().score(batch).slice(1)


@pytest.mark.parametrize("nothing", [None, math.nan])
def test_a_row_without_any_score_is_counted_as_such(tmp_path, nothing):
    class Moody(MeanScorer):
        def score(self, batch):
            means = super().score(batch)["mean"].to_pylist()
            return pa.table({"mean": [nothing if row % 2 else mean for row, mean in enumerate(means)]})

    dataset = make_dataset(tmp_path / "d", SAMPLES)
    record = run_unit(dataset.url, ScoreStage(dataset.url, Moody(1.0)), dataset.units[0])
    assert record["counts"] == {"success": 3, "rejected_upstream": 3, "no_score": 2}


@pytest.mark.parametrize("name", sorted(SCORERS))
def test_columns_stand_beside_the_rows_with_nulls_where_rejected(tmp_path, name):
    dataset = make_dataset(tmp_path / "d", SAMPLES, rows_per_unit=4)
    stage = ScoreStage(dataset.url, name)
    for unit in dataset.units:
        record = run_unit(dataset.url, stage, unit)
        assert record == dataset.record(stage.name, unit)
        assert record["fingerprint"] == dataset.open_stage(stage.name, stage.config)
        assert sum(record["counts"].values()) == record["rows"] == unit.rows
        columns = read_table(dataset.store, f"columns/{name}/{unit.name}.parquet")
        accepted = [status == "success" for status in dataset.sidecar(unit)["status"].to_pylist()]
        for column in columns.columns:
            assert column.is_valid().to_pylist() == accepted
    assert dataset.record(stage.name, dataset.units[1])["counts"] == {"success": 2, "rejected_upstream": 2}
    assert dataset.pending(stage.name) == []


def test_a_scorer_of_one_s_own_is_named_by_its_module(tmp_path, monkeypatch):
    module = types.ModuleType("my_scorers")
    module.Twice = functools.partial(MeanScorer, 2.0)
    monkeypatch.setitem(sys.modules, "my_scorers", module)
    dataset = make_dataset(tmp_path / "d", SAMPLES)
    stage = ScoreStage(dataset.url, "my_scorers:Twice")
    assert stage.name == "score-mean"
    assert run_unit(dataset.url, stage, dataset.units[0])["counts"]["success"] == 5
    with pytest.raises(ClipError, match="scorer 'my_scorers:Thrice' cannot be imported"):
        ScoreStage(dataset.url, "my_scorers:Thrice")


def test_rows_are_those_of_their_own_images(tmp_path):
    dataset = make_dataset(tmp_path / "d", SAMPLES, rows_per_unit=6)
    stage = ScoreStage(dataset.url, MeanScorer(2.0))
    for unit in dataset.units:
        run_unit(dataset.url, stage, unit)
        means = read_table(dataset.store, f"columns/mean/{unit.name}.parquet")["mean"].to_pylist()
        for row, mean in enumerate(means):
            image = SAMPLES[unit.row_start + row]["image"]
            if image is None:
                assert mean is None
            else:
                assert mean == pytest.approx(2 * np.asarray(image).mean(), abs=2)  # JPEG


def test_more_images_than_a_batch(tmp_path):
    samples = [{"caption": "x", "image": make_image(row, (16 + row, 16))} for row in range(150)]
    dataset = make_dataset(tmp_path / "d", samples, rows_per_unit=150)
    run_unit(dataset.url, ScoreStage(dataset.url, "image"), dataset.units[0])
    ratios = read_table(dataset.store, "columns/image/00000000.parquet")["aspect_ratio"].to_pylist()
    assert ratios == pytest.approx([(16 + row) / 16 for row in range(150)])


def test_the_same_samples_give_the_same_bytes(tmp_path):
    written = []
    for name in ("a", "b"):
        dataset = make_dataset(tmp_path / name, SAMPLES, rows_per_unit=11)
        for scorer in SCORERS:
            run_unit(dataset.url, ScoreStage(dataset.url, scorer), dataset.units[0])
        written.append([(tmp_path / name / f"columns/{s}/00000000.parquet").read_bytes() for s in SCORERS])
    assert written[0] == written[1]
    record = dataset.record("score-image", dataset.units[0])
    (file,) = record["files"].values()
    data = (tmp_path / "b/columns/image/00000000.parquet").read_bytes()
    assert file == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def test_a_unit_without_any_success_has_columns_of_nulls(tmp_path):
    dataset = make_dataset(tmp_path / "d", [{"caption": "x", "image": None}] * 3)
    for name in SCORERS:
        assert run_unit(dataset.url, ScoreStage(dataset.url, name), dataset.units[0])["counts"] == {
            "success": 0,
            "rejected_upstream": 3,
        }
        assert read_table(dataset.store, f"columns/{name}/00000000.parquet").num_rows == 3


def test_a_stored_image_that_does_not_decode_is_counted(tmp_path):
    samples = [*SAMPLES[:4], {"caption": "bad", "image": b"\xff\xd8\xff\xe0 no more than a JPEG's first bytes"}]
    dataset = make_dataset(tmp_path / "d", samples)
    counts = run_unit(dataset.url, ScoreStage(dataset.url, "image"), dataset.units[0])["counts"]
    assert counts == {"success": 3, "rejected_upstream": 1, "decode_error": 1}
    columns = read_table(dataset.store, "columns/image/00000000.parquet")
    assert columns["phash"].is_valid().to_pylist() == [True, False, True, True, False]


@pytest.mark.parametrize("damage", ["cut", "overwritten", "gone"])
def test_a_damaged_shard_is_an_error_that_names_it(tmp_path, damage):
    dataset = make_dataset(tmp_path / "d", SAMPLES)
    shard = tmp_path / "d" / dataset.units[0].shard_name
    data = shard.read_bytes()
    if damage == "cut":
        shard.write_bytes(data[: len(data) // 2])
    elif damage == "overwritten":
        shard.write_bytes(bytes(len(data)))
    else:
        shard.unlink()
    with pytest.raises(ClipError, match=r"shards/00000000\.tar (is damaged|does not exist)"):
        run_unit(dataset.url, ScoreStage(dataset.url, "image"), dataset.units[0])
    assert dataset.committed("score-image") == set()
    assert not (tmp_path / "d/columns").exists()


def test_a_unit_that_is_not_acquired_is_refused(tmp_path):
    dataset = make_dataset(tmp_path / "d", SAMPLES)
    (tmp_path / "d/commits/acquire/00000001.json").unlink()
    with pytest.raises(ClipDataError, match="unit 00000001 is not acquired yet"):
        run_unit(dataset.url, ScoreStage(dataset.url, "caption"), dataset.units[1])


def test_unknown_or_impossible_scorers_are_refused(tmp_path):
    with pytest.raises(ClipError, match="no scorer 'captoin'; did you mean 'caption'"):
        ScoreStage(str(tmp_path), "captoin")
    reserved = type("Reserved", (MeanScorer,), {"name": "sidecar"})
    with pytest.raises(ClipDataError, match="cannot be named 'sidecar'"):
        ScoreStage(str(tmp_path), reserved(1.0))


def test_a_scorer_that_breaks_its_promise_is_an_error(tmp_path):
    dataset = make_dataset(tmp_path / "d", SAMPLES)
    with pytest.raises(ClipDataError, match=r"scorer 'mean' returned 4 rows .* for 5 samples"):
        run_unit(dataset.url, ScoreStage(dataset.url, ShortScorer(1.0)), dataset.units[0])


def test_tasks_are_picklable(tmp_path):
    for scorer in ("image", MeanScorer(0.5)):
        task = pickle.loads(pickle.dumps(ScoreStage(str(tmp_path), scorer)))
        assert task == ScoreStage(str(tmp_path), scorer)
    assert task.config == {"scorer": "mean", "version": 3}
