"""A model is not evaluated on what it was trained on, unless that is asked for."""

import json
import shutil
from dataclasses import replace

import fsspec
import pytest

from clip_data.errors import ClipDataError
from clip_data.select import SelectConfig, select
from clip_eval import EvalConfig, RetrievalConfig, evaluate
from clip_models import create_model, save_model
from tests.support.evals import SPEC, color_dataset, tiny_model

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
    sources = [{"dataset": str(tmp_path / "data"), "selection": "first", "weight": 1.0}]
    (run / "config.json").write_text(json.dumps({"run": str(run), "data": {"sources": sources}}))
    return tmp_path


def config(place, selection: str, model: str = "run/model.safetensors") -> EvalConfig:
    benchmark = RetrievalConfig(name="captions", dataset=str(place / "data"), selection=selection, batch_size=8)
    return EvalConfig(model=str(place / model), out=str(place / "eval"), benchmarks=(benchmark,))


@pytest.mark.parametrize("model", ["run/model.safetensors", "run/checkpoints/step-00000004/model.safetensors"])
def test_training_samples_are_counted(place, model):
    with pytest.raises(
        ClipDataError, match=rf"11 of the {KEPT} samples of benchmark 'captions' are .* its overlap = 'allow'"
    ):
        evaluate(config(place, "", model))
    assert not (place / "eval").exists()


def test_held_out_samples_are_evaluated(place):
    assert evaluate(config(place, "second"))


def test_training_samples_can_be_allowed(place):
    whole = config(place, "")
    allowed = replace(whole, benchmarks=(replace(whole.benchmarks[0], overlap="allow"),))
    assert evaluate(allowed)[0]["n"] == KEPT
    with pytest.raises(ClipDataError, match="training samples"):  # also where the numbers are there already
        evaluate(whole)


def test_training_samples_that_are_gone_are_a_warning(place, capsys):
    (place / "data").rename(place / "moved")
    moved = config(place, "")
    moved = replace(moved, benchmarks=(replace(moved.benchmarks[0], dataset=str(place / "moved")),))
    assert evaluate(moved)
    assert "warning: cannot check whether the model was trained on the benchmarks' samples" in capsys.readouterr().err


def test_a_source_that_is_gone_does_not_hide_another(place, capsys):
    path = place / "run/config.json"
    config_of_run = json.loads(path.read_text())
    config_of_run["data"]["sources"].insert(0, {"dataset": str(place / "gone"), "selection": "", "weight": 1.0})
    path.write_text(json.dumps(config_of_run))
    with pytest.raises(ClipDataError, match=f"11 of the {KEPT} samples"):
        evaluate(config(place, ""))
    assert "warning: cannot check" in capsys.readouterr().err


def test_a_model_without_a_run_is_evaluated_on_anything(place, capsys):
    shutil.move(place / "run/model.safetensors", place / "model.safetensors")
    assert evaluate(config(place, "", "model.safetensors"))
    assert "warning" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("folder", "model"),
    [
        ("run", "model.safetensors"),
        ("run", "checkpoints/step-00000004/model.safetensors"),
        ("run/checkpoints/step-00000004", "model.safetensors"),
        ("run/checkpoints", "../model.safetensors"),
    ],
)
def test_the_run_is_found_from_every_folder(place, monkeypatch, folder, model):
    monkeypatch.chdir(place / folder)
    with pytest.raises(ClipDataError, match="are training samples too"):
        evaluate(replace(config(place, ""), model=model))


@pytest.mark.parametrize("model", ["run/model.safetensors", "run/checkpoints/step-00000004/model.safetensors"])
def test_the_run_is_found_in_a_folder_named_checkpoints_and_through_a_link(place, model):
    (place / "checkpoints").mkdir()
    (place / "run").rename(place / "checkpoints/run")
    (place / "linked.safetensors").symlink_to(place / "checkpoints" / model)
    for name in (f"checkpoints/{model}", "linked.safetensors"):
        with pytest.raises(ClipDataError, match="are training samples too"):
            evaluate(config(place, "", name))


@pytest.mark.parametrize(
    "begun",
    [
        {"model": {"pretrained": "RUN/model.safetensors"}},
        {"model": {"pretrained_image": "RUN/checkpoints/step-00000004/model.safetensors"}},
        {"model": {"name": "RUN/model.safetensors"}},
        {"parent": "RUN@4"},
        {"parent": "RUN"},
    ],
)
def test_the_samples_of_the_run_before_count_too(place, begun):
    sources = [{"dataset": str(place / "data"), "selection": "second"}]
    written = json.dumps({**begun, "data": {"sources": sources}}).replace("RUN", str(place / "run"))
    (place / "tuned").mkdir()
    (place / "tuned/config.json").write_text(written)
    shutil.copy(place / "run/model.safetensors", place / "tuned")
    with pytest.raises(ClipDataError, match=r"^11 of the 11 samples of benchmark 'captions'"):
        evaluate(config(place, "first", "tuned/model.safetensors"))


def test_a_model_in_an_object_store_is_evaluated_and_its_run_is_found(place, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "cache"))
    store = fsspec.filesystem("memory")
    store.put(str(place / "run"), "/leakage/run", recursive=True)
    (local,) = evaluate(config(place, "second"))[:1]
    for name in ("model.safetensors", "checkpoints/step-00000004/model.safetensors"):
        there = replace(config(place, "second"), model=f"memory://leakage/run/{name}", out=str(place / "there"))
        (row,) = evaluate(there)[:1]
        assert (row["model_sha256"], row["value"]) == (local["model_sha256"], local["value"])
        with pytest.raises(ClipDataError, match="are training samples too"):
            evaluate(replace(config(place, ""), model=there.model))
    written = create_model(SPEC, seed=0)
    save_model(place / "copy.safetensors", written, SPEC, {"clip_train.config": "0" * 32})
    store.put(str(place / "copy.safetensors"), "/leakage/copy/model.safetensors")
    capsys.readouterr()
    assert evaluate(replace(there, model="memory://leakage/copy/model.safetensors", out=str(place / "third")))
    assert "warning: cannot check whether" in capsys.readouterr().err


def test_weights_of_a_run_that_is_not_around_them_are_a_warning(place, capsys):
    save_model(place / "copy.safetensors", create_model(SPEC, seed=0), SPEC, {"clip_train.config": "0" * 32})
    assert evaluate(config(place, "", "copy.safetensors"))
    assert "warning: cannot check whether" in capsys.readouterr().err
