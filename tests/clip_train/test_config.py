import dataclasses
from typing import Any

import pytest

from clip_core.config import difference, from_dict
from clip_train.config import FitConfig, resolve, total_steps
from clip_train.errors import ClipTrainError

RECIPE: dict[str, Any] = {
    "run": "runs/one",
    "model": {"name": "ViT-B-32"},
    "data": {"sources": [{"dataset": "data"}]},
    "train": {"steps": 100},
}


def changed(**tables: dict[str, Any]) -> FitConfig:
    return from_dict(FitConfig, {**RECIPE, **{name: {**RECIPE.get(name, {}), **t} for name, t in tables.items()}})


def test_a_minimal_recipe_resolves():
    assert resolve(changed()) == changed()


@pytest.mark.parametrize(
    ("tables", "named"),
    [
        ({"train": {"epochs": 2}}, "train.steps = 100, train.epochs = 2.0"),
        ({"train": {"steps": 0}}, "none of them"),
        ({"train": {"steps": -1}}, "train.steps = -1"),
        ({"train": {"batch_size": 0}}, "train.batch_size = 0"),
        ({"train": {"seed": 2**63}}, "train.seed = 9223372036854775808 must be at most"),
        ({"train": {"threads": 100_000}}, "train.threads = 100000"),
        ({"data": {"sources": []}}, "data.sources is empty"),
        ({"data": {"sources": [{"dataset": "far", "weight": -1.0}]}}, "far is -1.0"),
        ({"data": {"scale": [0.5, 1.5]}}, "data.scale = (0.5, 1.5)"),
        ({"data": {"hflip": 2.0}}, "data.hflip = 2.0"),
        ({"data": {"text_lengths": [16, 8]}}, "data.text_lengths = [16, 8] must be rising numbers from 1"),
        ({"data": {"text_lengths": [8, 4096]}}, "data.text_lengths = [8, 4096] must be rising numbers from 1"),
        ({"val": {"every": 5}}, "val.every = 5"),
        ({"optim": {"lr": 0.0}}, "optim.lr = 0.0"),
        ({"optim": {"betas": [0.9, 1.0]}}, "optim.betas = (0.9, 1.0)"),
        ({"checkpoint": {"keep": 0}}, "checkpoint.keep = 0"),
    ],
)
def test_values_that_do_not_fit_are_named(tables, named):
    with pytest.raises(ClipTrainError) as error:
        resolve(changed(**tables))
    assert named in str(error.value)


def test_steps_that_are_not_saved_and_a_fork_of_itself_are_named():
    with pytest.raises(ClipTrainError, match=r"checkpoint.keep_every = 15 must be a multiple of checkpoint.every = 10"):
        resolve(changed(checkpoint={"every": 10, "keep_every": 15}))
    with pytest.raises(ClipTrainError, match="parent = 'run@3' is in the run folder itself"):
        resolve(dataclasses.replace(changed(), run="run/", parent="run@3"))


@pytest.mark.parametrize(
    ("length", "steps"), [({"steps": 7}, 7), ({"samples": 1000}, 10), ({"epochs": 2.5}, 12), ({"epochs": 2.0}, 10)]
)
def test_the_length_is_counted_in_whole_batches(length, steps):
    config = changed(train={"steps": 0, "batch_size": 100, **length})
    assert total_steps(config, samples=500) == steps


@pytest.mark.parametrize(
    ("tables", "named"),
    [
        ({"train": {"batch_size": 501}}, "501 is more than the 500 samples"),
        ({"train": {"steps": 0, "epochs": 0.1}}, "shorter than one step"),
        ({"optim": {"warmup": 100}}, "optim.warmup = 100"),
    ],
)
def test_a_run_that_the_data_cannot_feed_is_refused(tables, named):
    with pytest.raises(ClipTrainError, match=named):
        total_steps(changed(**tables), samples=500)


def test_the_identity_leaves_out_only_what_cannot_change_the_result():
    config = changed()
    same = [
        dataclasses.replace(config, run="elsewhere"),
        changed(data={"workers": 9}),
        changed(train={"log_every": 1, "device": "cpu"}),
        changed(checkpoint={"every": 5}),
    ]
    assert {other.fingerprint() for other in same} == {config.fingerprint()}
    for tables in ({"optim": {"lr": 1.0}}, {"train": {"seed": 1}}, {"train": {"threads": 2}}, {"model": {"name": "x"}}):
        assert changed(**tables).fingerprint() != config.fingerprint()


def test_the_first_difference_is_named_with_both_values():
    found = difference(changed().identity(), changed(optim={"lr": 0.1}).identity())
    assert found == "optim.lr is 0.0005 there and 0.1 now"
    assert changed().identity() == changed().identity()
