"""clip_models.inference.scorer: the CLIP scorer, on its own and in a dataset of clip-data."""

import pickle
import shutil
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

import clip_models
from clip_data.executors import ExecutorConfig, make_executor
from clip_data.score import ScoreStage
from clip_data.stage import run_stage, run_unit
from clip_data.tables import read_table
from clip_models import ClipModelsError
from clip_models.inference.scorer import ClipScorer
from tests.support import embeddings
from tests.support.datasets import make_dataset, make_image
from tests.support.embeddings import CAPTIONS, MODEL


@dataclass
class Samples:
    samples: Any
    images: Any


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return str(embeddings.model_file(tmp_path_factory.mktemp("weights")))


def batch(captions):
    return Samples(
        pa.table({"caption": pa.array(captions, pa.string())}), [make_image(n) for n in range(len(captions))]
    )


def test_the_similarity_is_the_cosine_of_the_features(weights):
    model = clip_models.create_model(MODEL, pretrained=weights).eval()
    transform, tokenizer = clip_models.preprocess_eval(model.spec.preprocess), clip_models.get_tokenizer(model.spec)
    with torch.inference_mode():
        image = model.encode_image(torch.stack([transform(make_image(n)) for n in range(4)]), normalize=True)
        text = model.encode_text(tokenizer(CAPTIONS), normalize=True)
    for batch_size in (64, 3):
        scorer = ClipScorer(model=MODEL, pretrained=weights, batch_size=batch_size, embeddings=True, device="cpu")
        found = scorer.score(batch(CAPTIONS))
        assert found.schema.equals(scorer.schema)
        np.testing.assert_allclose(found["clip_similarity"], (image * text).sum(-1).numpy(), atol=1e-6)
        for name, expected in (("image_embedding", image), ("text_embedding", text)):
            np.testing.assert_allclose(np.array(found[name].to_pylist()), expected.numpy(), atol=1e-6)


def test_an_empty_caption_has_no_similarity(weights):
    scorer = ClipScorer(model=MODEL, pretrained=weights, embeddings=True, device="cpu")
    found = scorer.score(batch(["a star", None, "", " \n", "green"]))
    for name, valid in (("clip_similarity", [0, 4]), ("text_embedding", [0, 4]), ("image_embedding", range(5))):
        assert [row for row, value in enumerate(found[name].to_pylist()) if value is not None] == list(valid)
    assert scorer.score(batch([])).num_rows == 0


@pytest.mark.slow
def test_scores_of_a_dataset(tmp_path, weights):
    samples = [
        {"caption": CAPTIONS[row % 4] if row != 3 else " ", "image": None if row == 1 else make_image(row)}
        for row in range(7)
    ]
    dataset = make_dataset(tmp_path / "d", samples, rows_per_unit=4)
    scorer = ClipScorer(model=MODEL, pretrained=weights, batch_size=3, device="cpu")
    stage = ScoreStage(dataset.url, pickle.loads(pickle.dumps(scorer)))
    with make_executor(ExecutorConfig(workers=1)) as executor:
        run_stage(dataset, stage, executor)
    found = [
        value
        for unit in dataset.units
        for value in read_table(dataset.store, f"columns/clip/{unit.name}.parquet")["clip_similarity"].to_pylist()
    ]
    assert [row for row, value in enumerate(found) if value is None] == [1, 3]
    kept = [row for row in range(7) if row not in (1, 3)]
    direct = scorer.score(
        Samples(pa.table({"caption": [CAPTIONS[row % 4] for row in kept]}), [make_image(row) for row in kept])
    )
    # The dataset holds JPEG.
    np.testing.assert_allclose([found[row] for row in kept], direct["clip_similarity"].to_pylist(), atol=0.03)
    before = {unit.name: dataset.store.read_bytes(f"columns/clip/{unit.name}.parquet") for unit in dataset.units}
    for unit in dataset.units:
        run_unit(dataset.url, stage, unit)
        assert dataset.store.read_bytes(f"columns/clip/{unit.name}.parquet") == before[unit.name]


def test_the_version_tells_models_apart(tmp_path, weights):
    scorer = ClipScorer(model=MODEL, pretrained=weights)
    copy = tmp_path / "copy.safetensors"
    shutil.copy(weights, copy)
    same = [
        ClipScorer(model=MODEL, pretrained=str(copy)),
        ClipScorer(model=MODEL, pretrained=weights, batch_size=7, device="cpu", name="other"),
        pickle.loads(pickle.dumps(scorer)),
    ]
    others = [
        ClipScorer(model=MODEL, pretrained=str(embeddings.model_file(tmp_path, seed=1))),
        ClipScorer(model=MODEL, pretrained=weights, precision="bf16"),
        ClipScorer(model=MODEL, pretrained=weights, embeddings=True),
        ClipScorer(model="ViT-B-32", pretrained="openai"),
        ClipScorer(model="ViT-B-32", pretrained="laion2b_e16"),
    ]
    whole = [ClipScorer(model=place) for place in (str(copy), weights)]  # a file that describes itself
    assert whole[0].version == whole[1].version
    assert {other.version for other in same} == {scorer.version}
    assert len({scorer.version, *(other.version for other in others)}) == 6
    before = scorer.version
    model = clip_models.create_model(MODEL, seed=5)
    clip_models.save_model(copy, model, model.spec)
    assert whole[0].version != whole[1].version
    assert same[0].version != before  # the file has changed under its name


def test_what_cannot_score_is_refused(weights):
    for options, message in (
        ({"model": "ViT-B-32"}, r"ViT-B-32 without pretrained has random weights; name a tag \(openai"),
        ({"model": MODEL, "pretrained": weights, "name": "my scores"}, "scorer name 'my scores' must be an identifier"),
        ({"model": MODEL, "pretrained": weights, "batch_size": 0}, "batch_size 0 must be positive"),
    ):
        with pytest.raises(ClipModelsError, match=message):
            ClipScorer(**options)
    with pytest.raises(ClipModelsError, match="have no column 'txt'; they have caption"):
        ClipScorer(model=MODEL, pretrained=weights, caption_column="txt").score(batch(["x"]))
