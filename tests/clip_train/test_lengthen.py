"""Runs that go on to a greater length, and forks: runs that start from a checkpoint of another one."""

import dataclasses
import json
from pathlib import Path

import pytest

from clip_train import CheckpointConfig, DataConfig, FitConfig, ModelConfig, OptimConfig, Source, TrainConfig, fit
from clip_train.checkpoints.layout import Folder
from clip_train.errors import ClipTrainError


@pytest.fixture
def recipe(datasets, tmp_path) -> FitConfig:
    return FitConfig(
        run=str(tmp_path / "run"),
        model=ModelConfig(name="ViT-Ti-4-24"),
        data=DataConfig(sources=(Source(dataset=str(datasets / "train")),), workers=0),
        optim=OptimConfig(lr=1e-3, warmup=1, schedule="constant"),
        train=TrainConfig(steps=3, batch_size=8, precision="fp32", threads=1, log_every=1, device="cpu"),
        checkpoint=CheckpointConfig(every=100),
    )


def changed(config: FitConfig, *, run: str = "", optim: dict | None = None, parent: str = "", **train) -> FitConfig:
    return dataclasses.replace(
        config,
        run=str(Path(config.run).with_name(run)) if run else config.run,
        parent=parent,
        optim=dataclasses.replace(config.optim, **(optim or {})),
        train=dataclasses.replace(config.train, **train),
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("optim", "begins"), [({}, 3), ({"schedule": "wsd", "cooldown": 2}, 1)], ids=["constant", "cooled"]
)
def test_a_longer_run_ends_with_the_bits_of_one_that_was_always_so_long(recipe, optim, begins):
    first = changed(recipe, optim=optim)
    fit(first)
    longer = changed(first, steps=5)
    with pytest.raises(ClipTrainError, match=r"train.steps is 3 there and 5 now; give --extend"):
        fit(longer)
    result = fit(dataclasses.replace(longer, extend=True))
    assert result.model_sha256 == fit(changed(longer, run="whole")).model_sha256
    rows = [json.loads(line) for line in (Path(first.run) / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row.get("event") == "resume"] == [begins]
    assert [row["step"] for row in rows if "event" not in row] == [1, 2, 3, 4, 5]
    assert (Path(first.run) / "model-00000003.safetensors").exists()
    assert fit(longer) == result  # the folder is now that of the longer run
    assert len(list(Path(first.run, "checkpoints").glob("replaced-step-00000003-*"))) == (begins < 3)


@pytest.mark.slow
def test_a_length_that_changes_the_past_is_refused_and_changes_nothing(recipe):
    config = changed(recipe, optim={"schedule": "cosine"})
    result = fit(config)
    longer = dataclasses.replace(changed(config, steps=5), extend=True)
    with pytest.raises(ClipTrainError, match=r"from 3 to 5 steps: optim.schedule = 'cosine' has other .*--from .*@3"):
        fit(longer)
    with pytest.raises(ClipTrainError, match="is a run of 3 steps, and 2 are fewer"):
        fit(dataclasses.replace(changed(config, steps=2), extend=True))
    assert fit(config) == result


@pytest.mark.slow
def test_a_fork_goes_on_with_another_rate_and_batch_at_the_samples_of_its_parent(recipe):
    fit(changed(recipe, steps=4))
    parent = f"{recipe.run}@4"
    child = changed(recipe, run="child", parent=parent, optim={"lr": 1e-4}, batch_size=16, steps=4)
    result = fit(child)
    rows = [json.loads(line) for line in (Path(child.run) / "log.jsonl").read_text().splitlines()]
    steps = [(row["step"], row["samples"], row["lr"]) for row in rows if "event" not in row]
    assert steps == [(3, 48, 1e-4), (4, 64, 1e-4)]
    record = json.loads((Path(child.run) / "fork.json").read_text())
    assert (record["run"], record["step"], record["begins_at"]) == (recipe.run, 4, 2)
    assert record["config"] == changed(recipe, steps=4).fingerprint()
    # The same recipe goes on in the same folder without the parent.
    for path in Folder(recipe.run).store.list("step-00000004"):
        Folder(recipe.run).store.remove(path)
    (Path(child.run) / "done.json").unlink()
    assert fit(child) == result
    # A fork that changes nothing ends as its parent would have.
    same = changed(recipe, run="same", parent=f"{child.run}@4", optim={"lr": 1e-4}, batch_size=16, steps=5)
    assert fit(same).model_sha256 != result.model_sha256


@pytest.mark.slow
def test_what_cannot_be_forked_is_one_line(recipe):
    fit(recipe)
    for change, message in (
        ({"batch_size": 16}, r"has seen 24 samples, which are no whole number of steps of train.batch_size = 16"),
        ({"optim": {"name": "sgd"}}, r"optim.name = 'sgd' cannot take over the state of the parent's 'adamw'"),
        ({"steps": 3}, "is at step 3, and the run ends at step 3"),
    ):
        child = changed(recipe, **{"run": "child", "parent": f"{recipe.run}@3", "steps": 9, **change})
        with pytest.raises(ClipTrainError, match=message):
            fit(child)
    with pytest.raises(ClipTrainError, match="is not the config of a training run"):
        fit(changed(recipe, run="child", parent=f"{recipe.run}-none@3"))
    with pytest.raises(ClipTrainError, match="in the run folder itself"):
        fit(changed(recipe, parent=f"{recipe.run}@3"))
