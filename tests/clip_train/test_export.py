"""Exported weights: what they hold, who loads them, and what is refused."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from clip_models import load_model
from clip_models.specs.openclip import to_open_clip_config
from clip_train import CheckpointConfig, DataConfig, FitConfig, ModelConfig, OptimConfig, Source, TrainConfig, fit
from clip_train.checkpoints.layout import Folder
from clip_train.commands.export import Config, run
from clip_train.errors import ClipTrainError
from clip_train.model import LockConfig
from clip_train.optim.config import EmaConfig


@pytest.fixture(scope="module")
def trained(datasets, tmp_path_factory) -> FitConfig:
    """Three steps of a run with an average, all of them saved."""
    config = FitConfig(
        run=str(tmp_path_factory.mktemp("export") / "run"),
        model=ModelConfig(name="ViT-Ti-4-24"),
        data=DataConfig(sources=(Source(dataset=str(datasets / "train")),), workers=0),
        optim=OptimConfig(lr=1e-3, ema=EmaConfig(decay=0.5)),
        train=TrainConfig(steps=3, batch_size=8, precision="fp32", threads=1, device="cpu"),
        checkpoint=CheckpointConfig(every=1, keep=3),
    )
    fit(config)
    return config


def saved(config: FitConfig, step: int, part: str) -> dict[str, torch.Tensor]:
    (file,) = Path(Folder(config.run).where(step)).glob("*.safetensors")
    return {name.removeprefix(f"{part}/"): t for name, t in load_file(file).items() if name.startswith(f"{part}/")}


def exported(output: Path, **options) -> dict[str, torch.Tensor]:
    assert run(Config(output=str(output), **options)) == 0
    return load_model(output)[0].state_dict()


@pytest.mark.slow
def test_a_step_its_average_and_a_mean_over_steps(trained, tmp_path, capsys):
    second = exported(tmp_path / "a.safetensors", run=f"{trained.run}@2")
    assert capsys.readouterr().out == f"step 2: {tmp_path / 'a.safetensors'}\n"
    assert all(torch.equal(second[name], tensor) for name, tensor in saved(trained, 2, "model").items())
    average = exported(tmp_path / "b.safetensors", run=trained.run, ema=True)
    assert all(torch.equal(average[name], tensor) for name, tensor in saved(trained, 3, "ema").items())
    mean = exported(tmp_path / "c.safetensors", run=trained.run, average="last:2")
    for name, tensor in saved(trained, 3, "model").items():
        assert torch.equal(mean[name], ((tensor.double() + second[name].double()) / 2).float())


@pytest.mark.slow
def test_the_files_of_the_run_are_those_exports_and_openclip_loads_them(trained, tmp_path):
    import open_clip

    run(Config(run=trained.run))
    assert (Path(trained.run) / "model-00000003.safetensors").read_bytes() == (
        Path(trained.run) / "model.safetensors"
    ).read_bytes()
    model, spec = load_model(Path(trained.run) / "model.safetensors")
    (tmp_path / "open_clip_config.json").write_text(json.dumps(to_open_clip_config(spec)))
    shutil.copy(Path(trained.run) / "model.safetensors", tmp_path / "open_clip_model.safetensors")
    theirs = open_clip.create_model(f"local-dir:{tmp_path}")
    image, text = torch.rand(2, 3, *spec.preprocess.size), torch.randint(1, 400, (2, spec.text.context_length))
    with torch.no_grad():
        assert torch.allclose(theirs.eval().encode_image(image), model.eval().encode_image(image), atol=1e-5)
        assert torch.allclose(theirs.encode_text(text), model.encode_text(text), atol=1e-5)


@pytest.mark.slow
def test_of_a_schedule_free_optimizer_the_averaged_weights_are_exported(trained, tmp_path):
    config = dataclasses.replace(
        trained,
        run=str(tmp_path / "run"),
        optim=OptimConfig(name="adamw-schedulefree", schedule="constant", lr=1e-2),
    )
    result = fit(config)
    (state,) = Path(Folder(config.run).where(3)).glob("*.safetensors")
    tensors = load_file(state)
    final = load_file(result.model)
    beta = config.optim.betas[0]
    for name in ("visual.proj", "text_projection"):
        weight, z = tensors[f"model/{name}"], tensors[f"optimizer/{name}|z"]
        assert torch.allclose(final[name], weight.lerp(z, 1 - 1 / beta), atol=1e-7)
        assert not torch.equal(final[name], weight)


@pytest.mark.slow
def test_what_cannot_be_exported_is_one_line(trained, tmp_path):
    for options, message in (
        ({"run": f"{trained.run}@9"}, "no checkpoint of step 9: saved are 1, 2, 3"),
        ({"run": trained.run, "average": "5"}, "--average '5' must be last:N"),
        ({"run": trained.run, "average": "last:4"}, "last:4 needs 4 checkpoints: saved are 1, 2, 3"),
        ({"run": trained.run, "output": "x.pt"}, r"--output 'x\.pt' must end with \.safetensors"),
        ({"run": str(tmp_path / "none")}, "is not the config of a training run: .*does not exist"),
    ):
        with pytest.raises(ClipTrainError, match=message):
            run(Config(**options))


@pytest.mark.slow
def test_the_average_of_a_run_with_a_locked_tower_is_exported(trained, tmp_path):
    locked = dataclasses.replace(trained.model, lock=LockConfig(image=True))
    config = dataclasses.replace(trained, run=str(tmp_path / "run"), model=locked)
    fit(config)
    average = exported(tmp_path / "a.safetensors", run=config.run, ema=True)
    moved, last = saved(config, 3, "ema"), saved(config, 3, "model")
    assert "visual.proj" not in moved
    assert all(torch.equal(average[name], moved.get(name, tensor)) for name, tensor in last.items())
