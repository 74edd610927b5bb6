"""Takedowns: whatever people call a sample, no later selection and no later stream contains it."""

import os
import threading

import pytest

from clip_data.cli import main
from clip_data.dataset import Dataset, parse_key
from clip_data.errors import ClipDataError
from clip_data.select import SelectConfig, select
from clip_data.stream import Source, build_manifest
from clip_data.takedown import take_down
from tests.support.datasets import make_dataset, make_image

URLS = [f"http://Host.test:80/{i}.jpg" for i in range(7)]


@pytest.fixture
def dataset(tmp_path) -> Dataset:
    """Six samples and a rejected row; the last two rows have the URL of the first and another caption."""
    rows = [
        {
            "image": make_image(i, (24, 16)) if i != 3 else None,
            "caption": f"caption {i}",
            "url": URLS[i if i < 5 else 0],
        }
        for i in range(7)
    ]
    return make_dataset(tmp_path / "data", rows, rows_per_unit=3)


def rows_of(dataset: Dataset) -> list[dict]:
    return [row for unit in dataset.units for row in dataset.sidecar(unit).to_pylist()]


def kept(dataset: Dataset) -> set[str]:
    manifest = build_manifest([Source(dataset=dataset.url)])
    (part,) = manifest.parts
    return {dataset.sidecar(unit)["caption"][row].as_py() for unit in part.units for row in part.rows(unit).tolist()}


@pytest.mark.parametrize(
    ("name", "gone"),
    [
        (lambda rows: rows[1]["uid"].hex(), {"caption 1"}),
        (lambda rows: rows[4]["key"], {"caption 4"}),
        (lambda rows: "http://host.test/0.jpg#part", {"caption 0", "caption 5", "caption 6"}),
        (lambda rows: "http://host.test/3.jpg", set()),  # a rejected row: it stays out if a retry succeeds
    ],
    ids=["uid", "key", "url", "rejected"],
)
def test_every_name_of_a_sample_takes_it_down(dataset, name, gone):
    before = kept(dataset)
    done = take_down(dataset, [name(rows_of(dataset))], "asked by its author")
    assert (done.uids, done.rows, done.missing) == (max(1, len(gone)), max(1, len(gone)), [])
    assert dataset.store.exists(done.file)
    assert kept(dataset) == before - gone
    assert select(dataset, SelectConfig(name="all"))["kept"] == len(before - gone)


def test_shards_stay_as_they_are(dataset, tmp_path):
    before = {path.name: path.read_bytes() for path in (tmp_path / "data" / "shards").iterdir()}
    take_down(dataset, URLS[:2], "asked")
    assert {path.name: path.read_bytes() for path in (tmp_path / "data" / "shards").iterdir()} == before


@pytest.mark.parametrize("name", ["ab" * 16, "0000000000009", "http://host.test/none.jpg"])
def test_a_name_that_matches_no_row(dataset, name):
    with pytest.raises(ClipDataError, match=f"has no row for {name}; nothing was taken down"):
        take_down(dataset, [URLS[1], name], "asked")
    assert dataset.taken_down() == set()
    done = take_down(dataset, [URLS[1], name], "asked", allow_missing=True)
    assert (done.rows, done.missing) == (1, [name])
    # A uid is recorded even so: its row may be acquired later.
    assert len(dataset.taken_down()) == 1 + (len(name) == 32)


@pytest.mark.parametrize("name", ["", "AB" * 16, "12", "host.test/0.jpg"])
def test_a_name_of_no_known_form_is_refused(dataset, name):
    with pytest.raises(ClipDataError, match=f"'{name}' is neither a uid"):
        take_down(dataset, [name], "asked")


def test_takedowns_at_the_same_time_are_all_kept(dataset):
    uids = [os.urandom(16).hex() for _ in range(16)]
    threads = [threading.Thread(target=dataset.take_down, args=([uid], "asked")) for uid in uids]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert dataset.taken_down() == set(map(bytes.fromhex, uids))


def test_the_command_reads_a_file(dataset, tmp_path, capsys):
    names = tmp_path / "names.txt"
    names.write_text(f"{URLS[1]}\n\n{rows_of(dataset)[2]['key']}\nhttp://elsewhere.test/x.jpg\n")
    command = ["takedown", "--dataset", dataset.url, "--reason", "asked", "--file", str(names)]
    with pytest.raises(SystemExit) as stop:
        main(command)
    assert stop.value.code == 2
    assert "has no row for http://elsewhere.test/x.jpg" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        main([*command, "--allow-missing"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith("takedown: 2 samples in 2 rows are taken down (tombstones/")
    assert out.endswith("; 1 names match no row\n")
    assert kept(dataset) == {"caption 0", "caption 4", "caption 5", "caption 6"}


def test_keys_lead_back_to_unit_and_row(dataset):
    assert [parse_key(unit.key(12)) for unit in dataset.units] == [(unit.ordinal, 12) for unit in dataset.units]
    assert parse_key("000000000001") is None
    assert parse_key("00000000000x1") is None
