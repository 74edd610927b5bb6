"""clip_data.select.build and reader: funnels, deduplication over units, re-runs, refusals."""

import json
import pickle

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from clip_core import ClipError
from clip_core.config import from_dict
from clip_data.dataset import Dataset
from clip_data.errors import ClipDataError
from clip_data.score import ScoreStage
from clip_data.select import SelectConfig, load_selection, select
from clip_data.select.columns import uid_fraction
from clip_data.stage import run_unit
from clip_data.tables import read_table, write_table
from tests.support.datasets import jpeg, make_dataset, make_image

IMAGE = make_image(0)
SAMPLES = [
    {"caption": "a red cube on a table", "image": IMAGE, "label": 0},  # 0
    {"caption": "gone", "image": None, "label": 1},  # 1: rejected
    {"caption": "two blue balls", "image": make_image(1), "label": 2},  # 2
    {"caption": "word", "image": make_image(2), "label": 3},  # 3: one word
    {"caption": "same bytes as the first", "image": IMAGE, "label": 4},  # 4: sha256 of 0
    {"caption": "same look as the first", "image": jpeg(IMAGE, quality=70), "label": 5},  # 5: phash of 0
    {"caption": "see www.shop.test for more", "image": make_image(3), "label": 6},  # 6: url
    {"caption": "to be taken down", "image": make_image(4), "label": 7},  # 7
    {"caption": "no label but three words", "image": make_image(5)},  # 8: null label
    {"caption": "a damaged picture here", "image": b"\xff\xd8\xff", "label": 9},  # 9: no phash
    {"caption": "another damaged picture here", "image": b"\xff\xd8\xff\xe0", "label": 10},  # 10: no phash
]
FULL = SelectConfig(name="clean", where="words >= 3 and not has_url and label < 99", dedup=("sha256", "phash"))


@pytest.fixture
def dataset(tmp_path):
    """Scored, with one takedown; units of 4, 4 and 3 rows."""
    dataset = make_dataset(tmp_path / "d", SAMPLES, rows_per_unit=4)
    for scorer in ("caption", "image"):
        for unit in dataset.units:
            run_unit(dataset.url, ScoreStage(dataset.url, scorer), unit)
    dataset.take_down([dataset.sidecar(dataset.units[1])["uid"][3].as_py().hex()], "asked for")
    return dataset


def kept(dataset, name):
    """The kept rows, counted through the whole dataset."""
    selection = load_selection(dataset, name)
    return [4 * unit.ordinal + row for unit in dataset.units for row in selection.rows(unit).tolist()]


def files(root):
    return {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_every_dropped_row_is_counted_under_its_first_reason(dataset):
    done = select(dataset, FULL)
    assert done["counts"] == [
        ["rejected", 1],
        ["taken_down", 1],
        ["where words >= 3", 1],
        ["where not has_url", 1],
        ["where label < 99", 1],
        ["duplicate sha256", 1],
        ["duplicate phash", 1],
    ]
    assert (done["attempted"], done["successful"], done["kept"]) == (11, 10, 4)
    assert done["attempted"] == done["kept"] + sum(count for _, count in done["counts"])
    assert kept(dataset, "clean") == [0, 2, 9, 10]
    assert done["units"] == {"00000000": 2, "00000001": 0, "00000002": 2}
    assert done["parent"] is None
    assert done["config"] == {
        "name": "clean",
        "where": FULL.where,
        "dedup": ["sha256", "phash"],
        "parent": "",
    }
    assert dataset.store.read_json("selections/clean/selection.json") == done
    assert dataset.selections() == ["clean"]
    table = read_table(dataset.store, "selections/clean/00000002.parquet")
    assert table.schema == pa.schema([("row", pa.int32())])
    assert dataset.store.list() == sorted(
        ["columns", "commits", "dataset.json", "selections", "shards", "tombstones", "units.parquet"]
    )


def test_duplicates_are_dropped_only_for_rows_that_are_still_there(dataset):
    select(dataset, SelectConfig(name="x", where="label > 0", dedup=("phash",)))
    assert kept(dataset, "x") == [2, 3, 4, 6, 9, 10]  # row 0 fails the clause, so 4 stands for it and 5
    select(dataset, SelectConfig(name="y", where="label > 4", dedup=("sha256",)))
    assert kept(dataset, "y") == [5, 6, 9, 10]


def test_the_cut_into_units_does_not_change_what_is_kept(tmp_path):
    rng = np.random.default_rng(0)
    images = [make_image(seed, (16, 16)) for seed in range(12)]
    samples = [
        {"caption": f"{row}", "image": images[rng.integers(12)] if row % 5 else None, "row": row} for row in range(60)
    ]
    found = set()
    for rows_per_unit in (60, 7, 4):
        dataset = make_dataset(tmp_path / str(rows_per_unit), samples, rows_per_unit=rows_per_unit)
        select(dataset, SelectConfig(name="unique", dedup=("sha256",)))
        selection = load_selection(dataset, "unique")
        found.add(tuple(unit.row_start + row for unit in dataset.units for row in selection.rows(unit).tolist()))
    (rows,) = found
    assert list(rows) == sorted({id(samples[row]["image"]): row for row in reversed(range(60)) if row % 5}.values())


def test_a_selection_of_a_selection_starts_from_its_rows(dataset):
    parent = select(dataset, FULL)
    child = select(dataset, SelectConfig(name="few", where="label != 2", parent="clean"))
    assert child["counts"] == [["not in clean", 7], ["rejected", 0], ["taken_down", 0], ["where label != 2", 1]]
    assert child["parent"] == {"name": "clean", "fingerprint": parent["fingerprint"]}
    assert kept(dataset, "few") == [0, 9, 10]
    with pytest.raises(ClipDataError, match="no selection 'cleen'; it has clean, few"):
        select(dataset, SelectConfig(name="other", parent="cleen"))


def test_splits_by_uid_cover_everything_once(dataset):
    select(dataset, SelectConfig(name="eval", where="uid_fraction < 0.4"))
    select(dataset, SelectConfig(name="train", where="uid_fraction >= 0.4"))
    everything = [row for row in range(11) if row not in (1, 7)]
    assert sorted(kept(dataset, "eval") + kept(dataset, "train")) == everything
    uids = [uid for unit in dataset.units for uid in dataset.sidecar(unit)["uid"].to_pylist()]
    assert kept(dataset, "eval") == [row for row in everything if uid_fraction(uids)[row] < 0.4]


def test_the_same_again_is_only_read(dataset, tmp_path):
    done = select(dataset, FULL)
    before = files(tmp_path)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "d/selections/clean").iterdir()}
    run_unit(dataset.url, ScoreStage(dataset.url, "caption"), dataset.units[0])  # the same bytes, in another time
    dataset.take_down([dataset.sidecar(dataset.units[0])["uid"][0].as_py().hex()], "applied when the rows are read")
    assert select(Dataset.open(dataset.url), FULL) == done
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert {path: data for path, data in files(tmp_path).items() if path in before and "selections" in str(path)} == {
        path: data for path, data in before.items() if "selections" in str(path)
    }


def test_a_kill_before_the_last_file_is_repaired_by_the_next_run(dataset, tmp_path):
    select(dataset, FULL)
    wanted = files(tmp_path)
    (tmp_path / "d/selections/clean/selection.json").unlink()
    (tmp_path / "d/selections/clean/00000001.parquet").write_bytes(b"of another run")
    assert dataset.selections() == []
    select(dataset, FULL)
    assert files(tmp_path) == wanted


def test_a_name_holds_one_selection(dataset):
    select(dataset, FULL)
    with pytest.raises(ClipDataError, match=r"'clean' .* exists .*: dedup is \['sha256', 'phash'\] there and \[\] now"):
        select(dataset, SelectConfig(name="clean", where=FULL.where))
    record = dataset.record("acquire", dataset.units[0])
    record["files"]["shards/00000000.tar"]["sha256"] = "0" * 64
    dataset.commit("acquire", dataset.units[0], record)
    with pytest.raises(ClipDataError, match=r"'clean' .* was made from other data"):
        select(dataset, FULL)


def test_fingerprints_name_config_parent_and_data(dataset):
    names = {select(dataset, config)["fingerprint"] for config in (FULL, SelectConfig(name="all"))}
    names.add(load_selection(dataset).fingerprint)
    names.add(select(dataset, SelectConfig(name="child", parent="clean"))["fingerprint"])
    assert len(names) == 4
    assert load_selection(dataset, "clean").fingerprint == select(dataset, FULL)["fingerprint"]


def test_unfinished_stages_are_named(dataset, tmp_path):
    (tmp_path / "d/commits/score-image/00000002.json").unlink()
    select(dataset, SelectConfig(name="captions", where="words >= 1"))  # the image columns are not needed
    with pytest.raises(ClipDataError, match=r"1 of 3 units have no score-image .*score --scorers image'"):
        select(dataset, SelectConfig(name="x", dedup=("phash",)))
    (tmp_path / "d/commits/acquire/00000001.json").unlink()
    for name in ("x", "captions"):
        with pytest.raises(ClipDataError, match=r"1 of 3 units .*first 00000001.*finish 'clip-data acquire'"):
            select(dataset, SelectConfig(name=name, where="words >= 1"))
    with pytest.raises(ClipDataError, match="finish 'clip-data acquire'"):
        load_selection(dataset)


def test_a_selection_of_nothing_is_an_error_and_leaves_nothing(dataset, tmp_path):
    with pytest.raises(ClipDataError, match=r"keeps none of 11 rows: most .* 'where width > 5000' \(7\)"):
        select(dataset, SelectConfig(name="none", where="label != 3 and width > 5000 and label < 99"))
    assert not (tmp_path / "d/selections").exists()


def test_dedup_by_phash_needs_the_image_scorer(tmp_path):
    dataset = make_dataset(tmp_path / "d", SAMPLES)
    with pytest.raises(ClipDataError, match="run 'clip-data score --scorers image' first"):
        select(dataset, SelectConfig(name="x", dedup=("phash",)))
    with pytest.raises(ClipDataError, match="no column 'words' in the sets builtin, sidecar"):
        select(dataset, SelectConfig(name="x", where="words >= 3"))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"name": "../x"}, "name = '../x' must be letters"),
        ({"name": ""}, "name = '' must be letters"),
        ({"name": "x", "parent": "x"}, "parent = 'x' is the selection itself"),
        ({"name": "x", "dedup": ["sha256", "sha256"]}, "names a hash twice"),
        ({"name": "x", "dedup": ["md5"]}, "must be one of 'sha256', 'phash'"),
        ({"name": "x", "were": "a"}, "did you mean where"),
    ],
)
def test_impossible_configs_are_refused(data, message):
    with pytest.raises(ClipError, match=message):
        from_dict(SelectConfig, data)


def test_the_empty_name_is_every_success(dataset):
    selection = load_selection(dataset)
    assert selection.units == {"00000000": 3, "00000001": 4, "00000002": 3}
    assert kept(dataset, "") == [row for row in range(11) if row != 1]
    assert selection.rows(dataset.units[0]).dtype == np.int32
    again = pickle.loads(pickle.dumps(selection))
    assert again.rows(dataset.units[2]).tolist() == [0, 1, 2]


def test_damaged_selections_are_named(dataset, tmp_path):
    select(dataset, FULL)
    selection = load_selection(dataset, "clean")
    for rows in ([0], [2, 0], [0, 4]):
        write_table(dataset.store, "selections/clean/00000000.parquet", pa.table({"row": pa.array(rows, pa.int32())}))
        with pytest.raises(ClipDataError, match=r"selections/clean/00000000\.parquet is damaged"):
            selection.rows(dataset.units[0])
    description = json.loads((tmp_path / "d/selections/clean/selection.json").read_text())
    dataset.store.write_json("selections/clean/selection.json", {**description, "format": 99})
    with pytest.raises(ClipDataError, match="format 99"):
        load_selection(dataset, "clean")


def test_columns_of_another_length_are_damage(dataset):
    table = read_table(dataset.store, "columns/caption/00000001.parquet")
    write_table(dataset.store, "columns/caption/00000001.parquet", table.slice(1))
    with pytest.raises(ClipDataError, match=r"columns/caption/00000001\.parquet is damaged: 3 rows instead of 4"):
        select(dataset, SelectConfig(name="x", where="words >= 1"))


def test_on_an_object_store():
    flat = [{"caption": f"{row}", "image": Image.new("RGB", (8, 8), (row % 3 * 80, 0, 0))} for row in range(9)]
    dataset = make_dataset("memory://test_on_an_object_store", flat, rows_per_unit=4)
    for unit in dataset.units:
        run_unit(dataset.url, ScoreStage(dataset.url, "image"), unit)
    select(dataset, SelectConfig(name="unique", dedup=("sha256",)))
    assert kept(dataset, "unique") == [0, 1, 2]


def test_a_selection_of_shards_that_were_replaced_is_refused(dataset):
    select(dataset, FULL)
    assert kept(dataset, "clean")
    unit = dataset.units[0]
    record = dataset.store.read_json(f"commits/acquire/{unit.name}.json")
    name = next(iter(record["files"]))
    record["files"][name]["sha256"] = "0" * 64  # as another acquire would have written it
    dataset.commit("acquire", unit, record)
    with pytest.raises(ClipDataError, match=r"made from other shards .* remove selections/clean and select again"):
        load_selection(dataset, "clean")
    assert load_selection(dataset).units  # the whole dataset is what is there
