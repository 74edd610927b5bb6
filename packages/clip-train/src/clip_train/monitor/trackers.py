"""Services that a run's scalars are sent to. They go on with their own run when the training is resumed."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from clip_core.config import to_dict
from clip_core.store import Store
from clip_train.config import FitConfig
from clip_train.errors import ClipTrainError

FILE = "trackers.json"  # in the run folder: the identifier of the run at each service


class Tracker(Protocol):
    """A service, or TensorBoard."""

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Adds the values of a step. A resumed run sends those after its checkpoint a second time."""

    def close(self) -> None:
        """Sends what is left and ends the service's run."""


def open_trackers(config: FitConfig, store: Store, place: Path) -> list[Tracker]:
    """Opens the services of `config.log`, and continues their runs of this run folder.

    `place` is the run folder, or the local copy of one in an object store.
    """
    known = store.read_json(FILE) if store.exists(FILE) else {}
    trackers: list[Tracker] = []
    for name, kind in KINDS.items():
        if project := getattr(config.log, name):
            try:
                tracker = kind(project, place, to_dict(config), known.get(name))
            except Exception as error:  # of a network, an account, a folder: the libraries have no common family
                raise ClipTrainError(f"log.{name} = {project!r} cannot be opened: {error}") from error
            known = {**known, name: tracker.run}
            trackers.append(tracker)
    if trackers:
        store.write_json(FILE, known)
    return trackers


class WandbTracker:
    """Weights & Biases. WANDB_MODE=offline writes to the run folder, and `wandb sync` sends it later."""

    def __init__(self, project: str, folder: Path, config: dict[str, Any], run: str | None) -> None:
        import wandb

        self.run = run or uuid.uuid4().hex[:8]
        self._run = wandb.init(
            project=project, id=self.run, name=_name(config), dir=str(folder), config=config, resume="allow"
        )
        # Against the step and not the order: a resumed run sends some steps again, which are then the same points.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self._run.log({**values, "step": step})

    def close(self) -> None:
        self._run.finish()


class MlflowTracker:
    """MLflow, at MLFLOW_TRACKING_URI, or in the folder `mlflow` of the run."""

    def __init__(self, experiment: str, folder: Path, config: dict[str, Any], run: str | None) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        self._metric = Metric
        self._client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI") or f"file:{folder.resolve() / 'mlflow'}")
        if run is None:
            found = self._client.get_experiment_by_name(experiment)
            number = found.experiment_id if found else self._client.create_experiment(experiment)
            run = self._client.create_run(number, run_name=_name(config)).info.run_id
            params = [Param(key, str(value)[:500]) for key, value in _flat(config).items()]
            for first in range(0, len(params), 100):  # the service's limit
                self._client.log_batch(run, params=params[first : first + 100])
        else:
            self._client.update_run(run, status="RUNNING")
        self.run = run

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self._client.log_batch(self.run, [self._metric(name, value, 0, step) for name, value in values.items()])

    def close(self) -> None:
        self._client.set_terminated(self.run)


def _name(config: dict[str, Any]) -> str:
    return str(config["run"]).rstrip("/").rpartition("/")[2]


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns the values of nested tables by their dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


KINDS: dict[str, Any] = {"wandb": WandbTracker, "mlflow": MlflowTracker}
"""by the key of `log` that names the project"""
