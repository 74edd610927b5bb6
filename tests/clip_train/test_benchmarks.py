"""Benchmarks of clip-eval during training: the numbers of the exported weights, on any number of ranks."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from clip_core import ClipError
from clip_data.stream import Source, build_manifest
from clip_eval import EvalConfig, RetrievalConfig, ZeroShotConfig, evaluate
from clip_eval.features import Embedder
from clip_models import get_model_spec, save_model
from clip_models.model import build_model
from clip_train import CheckpointConfig, DataConfig, FitConfig, ModelConfig, OptimConfig, TrainConfig, ValConfig, fit
from clip_train.config import resolve
from clip_train.gradients import Gradients
from clip_train.hooks.benchmarks import RankEmbedder
from clip_train.optim.config import EmaConfig
from clip_train.parallel import World, join_world
from clip_train.parallelize.config import ParallelConfig
from clip_train.tasks.contrastive import ContrastiveConfig
from tests.support.distributed import run_ranks
from tests.support.evals import color_dataset

NAME = "ViT-Ti-4-24"
TEXTS = [f"a photo of number {number}" for number in range(7)]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A labelled dataset, of which some rows failed."""
    folder = tmp_path_factory.mktemp("colors")
    color_dataset(folder / "data")
    return folder / "data"


@pytest.fixture
def recipe(data, datasets, tmp_path) -> FitConfig:
    benchmarks = (
        ZeroShotConfig(
            name="colors", dataset=str(data), label_column="color", templates=("a {} box", "{}"), batch_size=8
        ),
        RetrievalConfig(name="captions", dataset=str(data), batch_size=8),
    )
    return FitConfig(
        run=str(tmp_path / "run"),
        model=ModelConfig(name=NAME),
        data=DataConfig(sources=(Source(dataset=str(datasets / "train")),), workers=1),
        val=ValConfig(benchmarks=benchmarks, every=2),
        optim=OptimConfig(lr=1e-3, ema=EmaConfig(decay=0.5)),
        train=TrainConfig(steps=4, batch_size=8, precision="fp32", threads=1, device="cpu"),
        checkpoint=CheckpointConfig(every=4),
    )


def events_of(run: str) -> list[dict]:
    rows = [json.loads(line) for line in (Path(run) / "log.jsonl").read_text().splitlines()]
    return [row for row in rows if row.get("event") == "benchmark"]


@pytest.mark.slow
def test_the_last_numbers_are_those_of_the_exported_weights(recipe, tmp_path):
    fit(recipe)
    events = events_of(recipe.run)
    wanted = [
        (step, weights, name) for step in (2, 4) for weights in ("model", "ema") for name in ("colors", "captions")
    ]
    assert [(row["step"], row["weights"], row["benchmark"]) for row in events] == wanted
    for weights, file in (("model", "model.safetensors"), ("ema", "model-ema.safetensors")):
        config = EvalConfig(model=f"{recipe.run}/{file}", out=str(tmp_path / weights), benchmarks=recipe.val.benchmarks)
        rows = evaluate(config)
        found = {row["benchmark"]: row for row in events if (row["step"], row["weights"]) == (4, weights)}
        assert len(rows) > 5
        for row in rows:
            assert found[row["benchmark"]][row["metric"]] == row["value"], row
            assert found[row["benchmark"]]["samples"] > 10
    first, last = ([{**row, "step": 0} for row in events if row["step"] == step] for step in (2, 4))
    assert first != last


def features_on_ranks(dataset: str, parallel: str, precision: str) -> tuple[np.ndarray, list[str], np.ndarray]:
    with join_world("cpu") as world:
        return features(dataset, world, ParallelConfig(parallel=parallel, precision=precision))


def features(dataset: str, world: World, how: ParallelConfig) -> tuple[np.ndarray, list[str], np.ndarray]:
    torch.manual_seed(0)
    task = ContrastiveConfig().build(build_model(get_model_spec(NAME)), precision=how.precision, world=world)
    Gradients(task, world, how)
    embedder, manifest = RankEmbedder(task=task, world=world), build_manifest([Source(dataset=dataset)])
    options = {"precision": "fp32", "batch_size": 4}
    for _ in range(2):  # the second time as after other steps
        images = embedder.images(manifest, max_corrupt=0.0, **options)
        texts = embedder.texts(TEXTS, **options)
        embedder.forget()
    assert task.model.training
    embedder.close()
    return images.features, images.strings["uid"], texts.features


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "parallel"), [(3, "ddp"), (2, "fsdp")])
def test_ranks_share_the_work_and_have_the_features_of_one_process(data, ranks, parallel):
    here = World(0, 1, torch.device("cpu"))
    wanted = features(str(data), here, ParallelConfig(precision="fp32"))
    for images, uids, texts in run_ranks(ranks, features_on_ranks, str(data), parallel, "fp32"):
        assert uids == wanted[1]
        np.testing.assert_allclose(images, wanted[0], atol=1e-6)
        np.testing.assert_allclose(texts, wanted[2], atol=1e-6)


def test_the_features_are_those_of_clip_eval(data, tmp_path):
    class Plain(Embedder):
        model = build_model(get_model_spec(NAME)).eval()

    task = ContrastiveConfig().build(Plain.model, precision="fp32", world=World(0, 1, torch.device("cpu")))
    manifest, options = build_manifest([Source(dataset=str(data))]), {"precision": "fp32", "batch_size": 5}
    ours = RankEmbedder(task=task, world=task.world)
    for one in (
        lambda each: each.images(manifest, max_corrupt=0.0, **options),
        lambda each: each.texts(TEXTS, **options),
    ):
        found = one(ours)
        Plain.model.eval()
        np.testing.assert_allclose(found.features, one(Plain()).features, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda one: (one, one), "two benchmarks are named 'colors'"),
        (lambda one: (replace(one, precision="bf16"),), r"precision = 'bf16', but .* train.precision = 'fp32'"),
    ],
)
def test_benchmarks_that_do_not_fit_are_refused(recipe, change, message):
    val = replace(recipe.val, benchmarks=change(recipe.val.benchmarks[0]))
    with pytest.raises(ClipError, match=message):
        resolve(replace(recipe, val=val))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dataset": "TRAIN"}, r"benchmark 'colors' are training samples too"),
        ({"label_column": "species"}, "species"),
        ({"selection": "nothing"}, "nothing"),
    ],
)
def test_what_cannot_be_measured_is_said_before_the_run_begins(recipe, datasets, change, message):
    change = {key: value.replace("TRAIN", str(datasets / "train")) for key, value in change.items()}
    one = replace(recipe.val.benchmarks[0], **change)
    if "dataset" in change:
        one = RetrievalConfig(name="colors", dataset=change["dataset"])
    with pytest.raises(ClipError, match=message):
        fit(replace(recipe, val=replace(recipe.val, benchmarks=(one,))))
    assert not Path(recipe.run).exists()


def test_samples_of_the_run_that_wrote_the_first_weights_count_as_training_samples(recipe, data, tmp_path):
    before = tmp_path / "before"
    before.mkdir()
    model = build_model(get_model_spec(NAME))
    save_model(before / "model.safetensors", model, model.spec)
    (before / "config.json").write_text(json.dumps({"data": {"sources": [{"dataset": str(data)}]}}))
    begun = replace(recipe, model=ModelConfig(name=NAME, pretrained=str(before / "model.safetensors")))
    with pytest.raises(ClipError, match="are training samples too"):
        fit(begun)
