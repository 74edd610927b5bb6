"""The services, offline: wandb's own files, and an MLflow store in the run folder."""

import json

import pytest

from clip_core.store import Store
from clip_train import DataConfig, FitConfig, ModelConfig, Source, TrainConfig
from clip_train.config import resolve
from clip_train.errors import ClipTrainError
from clip_train.monitor import config as monitor_config
from clip_train.monitor.config import LogConfig
from clip_train.monitor.trackers import open_trackers

pytestmark = pytest.mark.slow


def config(tmp_path, **log):
    data = DataConfig(sources=(Source(dataset="data"),))
    model, train = ModelConfig(name="ViT-Ti-4-24"), TrainConfig(steps=1)
    return FitConfig(run=str(tmp_path / "run"), model=model, data=data, train=train, log=LogConfig(**log))


def logged(tmp_path, steps, **log):
    """Sends the steps as one process does; returns the identifiers of the runs."""
    folder = tmp_path / "run"
    folder.mkdir(exist_ok=True)
    for tracker in open_trackers(config(tmp_path, **log), Store(folder), folder):
        for step in steps:
            tracker.scalars({"train/loss": 1.0 / step}, step)
        tracker.close()
    return json.loads((folder / "trackers.json").read_text())


def test_mlflow_goes_on_with_its_run(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    first = logged(tmp_path, [1, 2], mlflow="tests")
    assert logged(tmp_path, [2, 3], mlflow="tests") == first
    from mlflow import MlflowClient

    client = MlflowClient(f"file:{tmp_path / 'run' / 'mlflow'}")
    history = client.get_metric_history(first["mlflow"], "train/loss")
    assert sorted({(each.step, each.value) for each in history}) == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    run = client.get_run(first["mlflow"])
    assert run.info.status == "FINISHED"
    assert run.data.params["model.name"] == "ViT-Ti-4-24"


def test_wandb_goes_on_with_its_run(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    first = logged(tmp_path, [1, 2], wandb="tests")
    assert logged(tmp_path, [2, 3], wandb="tests") == first
    files = list((tmp_path / "run" / "wandb").glob(f"offline-run-*-{first['wandb']}/run-{first['wandb']}.wandb"))
    assert files
    assert all(file.stat().st_size for file in files)


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_library_is_named_with_its_extra(tmp_path, monkeypatch, name):
    monkeypatch.setattr(monitor_config, "find_spec", lambda module: None)
    with pytest.raises(ClipTrainError, match=rf"^log\.{name} = 'tests' needs {name}.*clip-train\[{name}\]"):
        resolve(config(tmp_path, **{name: "tests"}))
