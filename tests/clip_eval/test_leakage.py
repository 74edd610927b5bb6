"""A model is not evaluated on what it was trained on, unless that is asked for."""

import json
import shutil
from dataclasses import replace

import pytest

from clip_data.errors import ClipDataError
from clip_data.select import SelectConfig, select
from clip_eval import EvalConfig, TaskConfig, evaluate
from tests.support.evals import color_dataset, tiny_model

KEPT = 21  # of the 24 rows


@pytest.fixture
def place(tmp_path):
    """A dataset with two halves, and the folder of a run that was trained on the first."""
    dataset = color_dataset(tmp_path / "data")
    select(dataset, SelectConfig(name="first", where="key < '0000000100004'"))
    select(dataset, SelectConfig(name="second", where="key >= '0000000100004'"))
    run = tmp_path / "run"
    (run / "checkpoints/step-00000004").mkdir(parents=True)
    tiny_model(run / "model.safetensors")
    shutil.copy(run / "model.safetensors", run / "checkpoints/step-00000004")
    sources = [{"root": str(tmp_path / "data"), "selection": "first", "weight": 1.0}]
    (run / "config.json").write_text(json.dumps({"run": str(run), "data": {"sources": sources}}))
    return tmp_path


def config(place, selection: str, model: str = "run/model.safetensors") -> EvalConfig:
    task = TaskConfig(name="captions", kind="retrieval", root=str(place / "data"), selection=selection, batch_size=8)
    return EvalConfig(model=str(place / model), out=str(place / "eval"), tasks=(task,))


@pytest.mark.parametrize("model", ["run/model.safetensors", "run/checkpoints/step-00000004/model.safetensors"])
def test_training_samples_are_counted(place, model):
    with pytest.raises(
        ClipDataError, match=rf"11 of the {KEPT} samples of task 'captions' are .* its overlap = 'allow'"
    ):
        evaluate(config(place, "", model))
    assert not (place / "eval").exists()


def test_held_out_samples_are_evaluated(place):
    assert evaluate(config(place, "second"))


def test_training_samples_can_be_allowed(place):
    whole = config(place, "")
    allowed = replace(whole, tasks=(replace(whole.tasks[0], overlap="allow"),))
    assert evaluate(allowed)[0]["n"] == KEPT
    with pytest.raises(ClipDataError, match="training samples"):  # also where the numbers are there already
        evaluate(whole)


def test_training_samples_that_are_gone_are_a_warning(place, capsys):
    (place / "data").rename(place / "moved")
    moved = config(place, "")
    moved = replace(moved, tasks=(replace(moved.tasks[0], root=str(place / "moved")),))
    assert evaluate(moved)
    assert "warning: cannot check whether the model was trained on the tasks' samples" in capsys.readouterr().err


def test_a_model_without_a_run_is_evaluated_on_anything(place):
    shutil.move(place / "run/model.safetensors", place / "model.safetensors")
    assert evaluate(config(place, "", "model.safetensors"))
