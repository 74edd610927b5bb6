"""Tasks with a normaliser for every sample: the same on any number of ranks, over steps and restarts."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from clip_models import load_model
from clip_models.model import build_model
from clip_train import CheckpointConfig, DataConfig, FitConfig, ModelConfig, OptimConfig, Source, TrainConfig, fit
from clip_train.errors import ClipTrainError
from clip_train.gradients import Gradients
from clip_train.parallel import World, join_world
from clip_train.tasks.global_contrastive import VERSIONS, GlobalContrastiveConfig
from clip_train.tasks.temperature import LogitScaleConfig
from tests.support.distributed import run_ranks
from tests.support.steps import FP32, HERE, VIT, batch_of, whole
from tests.support.trainer import logged, start, wait_for

SAMPLES, BATCH, STEPS = 20, 12, 4


def config(version: str) -> GlobalContrastiveConfig:
    epochs = 2 if VERSIONS[version].gamma == "cosine" else 0
    return GlobalContrastiveConfig(version=version, gamma=0.4, gamma_epochs=epochs, temperature_lr=0.01, eps=1e-6)


def train(version: str, world: World, parts: int = 1) -> dict[str, np.ndarray]:
    """Gradients of some steps of gradient descent, losses, and the table; samples come again in other batches."""
    torch.manual_seed(0)
    task = config(version).build(build_model(VIT), precision="fp32", world=world)
    task.start(SimpleNamespace(samples=SAMPLES), None, batch_size=BATCH)
    gradients = Gradients(task, world, FP32, micro_batches=parts)
    size, found = BATCH // world.size, {}
    for step in range(STEPS):
        rows = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(step))[:BATCH]
        mine = range(world.rank * size, (world.rank + 1) * size)
        batch = batch_of(task, mine) | {"ordinal": rows[list(mine)].numpy()}
        losses = gradients.backward(task.prepare(batch), step)
        found[f"loss {step}"] = losses["loss"].numpy()
        trained = [p for p in task.model.parameters() if p.requires_grad]
        found[f"gradient {step}"] = torch.cat([whole(p.grad).flatten() for p in trained]).numpy()
        with torch.no_grad():
            for parameter in trained:
                parameter -= 0.1 * parameter.grad
                parameter.grad = None
    for name, column in task.parts["samples"].state().items():
        found[name] = whole(column).clone().numpy()
    return found


def train_all(parts: int) -> dict[str, dict[str, np.ndarray]]:
    with join_world("cpu") as world:
        return {version: train(version, world, parts) for version in ("v1", "v2", "v3")}


def assert_same(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        seen = np.isfinite(value)
        assert np.array_equal(seen, np.isfinite(found[name]))
        error = np.linalg.norm(found[name][seen] - value[seen]) / np.linalg.norm(value[seen])
        assert error < 1e-5, name


@pytest.mark.slow
@pytest.mark.parametrize("version", ["v1", "v2", "v3"])
def test_micro_batches_change_neither_gradients_nor_state(version):
    assert_same(train(version, HERE, 3), train(version, HERE))


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "parts"), [(2, 2), (3, 1), (4, 1)])
def test_ranks_change_neither_gradients_nor_state(ranks, parts):
    wanted = {version: train(version, HERE) for version in ("v1", "v2", "v3")}
    for answer in run_ranks(ranks, train_all, parts):
        for version, found in answer.items():
            assert_same(found, wanted[version])


def test_the_state_matters_and_an_evaluation_leaves_it_alone():
    task = config("v2").build(build_model(VIT), precision="fp32", world=HERE)
    task.start(SimpleNamespace(samples=SAMPLES), None, batch_size=BATCH)
    assert not task.model.logit_scale.requires_grad
    prepared = task.prepare(batch_of(task, range(BATCH)) | {"ordinal": np.arange(BATCH)})
    gradients = Gradients(task, HERE)
    first = gradients.backward(prepared, 0)["loss"].item()
    before = {name: value.clone() for name, value in task.parts["samples"].state().items()}
    assert before["image_temperature"][:BATCH].ne(before["image_temperature"][-1]).all()
    task.evaluate(prepared)
    assert all(torch.equal(value, before[name]) for name, value in task.parts["samples"].state().items())
    assert gradients.backward(prepared, 1)["loss"].item() != first


def test_gamma_is_constant_or_falls_in_steps_of_an_epoch():
    falling = GlobalContrastiveConfig(version="v3", gamma=0.2, gamma_epochs=4)
    assert [falling.gamma_at(epoch) for epoch in (0, 2, 4, 9)] == pytest.approx([1.0, 0.6, 0.2, 0.2])
    assert GlobalContrastiveConfig(version="sogclr", gamma=0.2).gamma_at(0) == 0.2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gamma_epochs": 0}, r"task\.gamma_epochs = 0: task\.version = 'v3' needs the epochs in which gamma falls"),
        ({"version": "sogclr"}, r"task\.gamma_epochs = 3: gamma is constant in 'sogclr'"),
        ({"gamma": 0.0}, r"task\.gamma = 0\.0 must be in \(0, 1\]"),
        ({"eps": 0.0}, r"task\.eps = 0\.0 must be above 0"),
        ({"rho": -1.0}, r"task\.rho = -1\.0 at least 0"),
        ({"temperature_momentum": 1.0}, r"task\.temperature_momentum = 1\.0 in \[0, 1\)"),
        ({"logit_scale": LogitScaleConfig(learnable=False)}, r"task\.logit_scale\.learnable = false: .* 'v3'"),
    ],
)
def test_bad_values_are_refused(change, message):
    with pytest.raises(ClipTrainError, match=message):
        GlobalContrastiveConfig(**{"gamma_epochs": 3, **change}).check(VIT)


def test_a_model_of_another_objective_is_refused():
    with pytest.raises(ClipTrainError, match="logit_bias would be ignored"):
        config("v3").check(replace(VIT, init_logit_bias=-10.0))


@pytest.mark.slow
def test_a_killed_run_goes_on_with_the_same_bits(tmp_path, datasets):
    def run(name: str) -> FitConfig:
        return FitConfig(
            run=str(tmp_path / name),
            model=ModelConfig(name="ViT-Ti-4-24"),
            task=config("v2"),
            data=DataConfig(sources=(Source(dataset=str(datasets / "train")),), workers=0),
            optim=OptimConfig(lr=1e-3),
            train=TrainConfig(steps=30, batch_size=8, precision="fp32", threads=1, log_every=1, device="cpu"),
            checkpoint=CheckpointConfig(every=2),
        )

    uninterrupted = fit(run("whole"))
    killed = run("killed")
    process = start(killed, tmp_path)
    wait_for(logged(tmp_path / "killed", 7), process)
    process.kill()
    process.wait()
    assert not (tmp_path / "killed/done.json").exists()
    again = fit(killed)
    assert again.model_sha256 == uninterrupted.model_sha256
    assert load_model(again.model)[0].logit_scale.exp().item() == pytest.approx(1 / 0.07, rel=1e-5)
