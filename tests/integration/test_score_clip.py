"""CLIP similarities of a dataset, and a selection by them, with the pipeline scripts."""

import json

import pytest

from clip_data.select import SelectConfig, select
from clip_data.tables import read_table
from tests.support import embeddings
from tests.support.datasets import make_dataset, make_image
from tests.support.pipeline import digests, run


@pytest.fixture
def dataset(tmp_path):
    samples = [{"caption": f"picture {row}", "image": make_image(row)} for row in range(12)]
    return make_dataset(tmp_path / "d", samples, rows_per_unit=4)


def test_similarities_can_be_selected_on(dataset, tmp_path):
    model = ("--model", embeddings.model_file(tmp_path), "--device", "cpu")
    done = run("score_clip.py", "--dataset", dataset.url, *model, "--batch-size", 3)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == f"scores of 3 shards are the columns clip of {dataset.url}\n"
    values = [
        value
        for unit in dataset.units
        for value in read_table(dataset.store, f"columns/clip/{unit.name}.parquet")["clip_similarity"].to_pylist()
    ]
    middle = sorted(values)[6]
    made = select(dataset, SelectConfig(name="near", where=f"clip_similarity >= {middle:.9f}"))
    assert made["kept"] in (5, 6)  # the limit is rounded
    before = digests(tmp_path / "d", "columns/clip/*.parquet")
    assert len(before) == 3
    assert run("score_clip.py", "--dataset", dataset.url, *model).returncode == 0
    assert digests(tmp_path / "d", "columns/clip/*.parquet") == before
    assert json.loads((tmp_path / "d/selections/near/selection.json").read_text())["kept"] == made["kept"]


def test_a_model_without_weights_is_one_line(dataset):
    done = run("score_clip.py", "--dataset", dataset.url, "--model", "ViT-B-32")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ViT-B-32 without pretrained has random weights; name a tag (openai")
    assert len(done.stderr.splitlines()) == 1
