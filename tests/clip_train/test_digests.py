"""The weights that a run starts from and learns from are part of its identity, not only their names."""

import hashlib
import json
from dataclasses import replace

import pytest
from safetensors.torch import load_file, save_file

from clip_core import ClipError
from clip_models import create_model, save_model, save_open_clip
from clip_train import ClipTrainError, DataConfig, FitConfig, ModelConfig, TrainConfig, fit
from clip_train.config import resolve
from clip_train.digests import with_digests
from clip_train.runfolder import RunFolder
from clip_train.synthetic import SyntheticConfig
from clip_train.tasks.distillation import DistillationConfig

NAME = "ViT-Ti-4-24"


def write(path, seed):
    model = create_model(NAME, seed=seed)
    save_model(path, model, model.spec)
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def recipe(tmp_path):
    return FitConfig(
        run=str(tmp_path / "run"),
        model=ModelConfig(name=NAME),
        data=DataConfig(synthetic=SyntheticConfig(samples=16)),
        train=TrainConfig(steps=1, batch_size=4, precision="fp32", threads=1),
    )


def test_each_file_of_weights_has_its_digest(tmp_path, recipe):
    digest, other = write(tmp_path / "a.safetensors", 0), write(tmp_path / "b.safetensors", 1)
    a, b = str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors")
    assert with_digests(recipe).weights == {}
    model = ModelConfig(name=NAME, pretrained=a, pretrained_text=b)
    assert with_digests(replace(recipe, model=model)).weights == {
        "model.pretrained": digest,
        "model.pretrained_text": other,
    }
    assert with_digests(replace(recipe, model=ModelConfig(name=a))).weights == {"model.name": digest}
    for task in (DistillationConfig(teacher=b), DistillationConfig(teacher=NAME, teacher_pretrained=b)):
        (found,) = with_digests(replace(recipe, task=task)).weights.items()
        assert found == ("task.teacher_pretrained" if task.teacher_pretrained else "task.teacher", other)
    model = create_model(NAME, seed=0)
    save_open_clip(tmp_path / "folder", model)
    (found,) = with_digests(replace(recipe, model=ModelConfig(name=f"local-dir:{tmp_path / 'folder'}"))).weights.items()
    file = tmp_path / "folder/open_clip_model.safetensors"
    assert found == ("model.name", hashlib.sha256(file.read_bytes()).hexdigest())


def test_weights_in_parts_are_all_counted(tmp_path, recipe):
    write(tmp_path / "whole.safetensors", 0)
    tensors, folder = load_file(tmp_path / "whole.safetensors"), tmp_path / "parts"
    folder.mkdir()
    names = sorted(tensors)
    places = {name: f"model-{1 + (name > names[5])}-of-2.safetensors" for name in names}
    for part in set(places.values()):
        save_file({name: tensors[name] for name in names if places[name] == part}, folder / part)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    config = replace(recipe, model=ModelConfig(name=NAME, pretrained=str(folder)))
    before = with_digests(config).weights
    tensors[names[-1]].add_(1)
    save_file({name: tensors[name] for name in names[6:]}, folder / "model-2-of-2.safetensors")
    assert with_digests(config).weights != before


@pytest.mark.slow
def test_another_file_of_the_same_name_is_another_run(tmp_path, recipe):
    path = tmp_path / "start.safetensors"
    first = write(path, 0)
    config = replace(recipe, model=ModelConfig(name=NAME, pretrained=str(path)))
    done = fit(config)
    second = write(path, 1)
    with pytest.raises(ClipTrainError, match=rf"weights\.model\.pretrained is '{first}' there and '{second}' now"):
        fit(config)
    path.unlink()
    assert fit(config) == done  # a finished run does not need what it started from
    with pytest.raises(ClipError, match="no weights file"):
        fit(replace(config, run=str(tmp_path / "new")))


def test_a_digest_in_the_recipe_must_be_right(tmp_path, recipe):
    path = tmp_path / "start.safetensors"
    digest = write(path, 0)
    config = replace(recipe, model=ModelConfig(name=NAME, pretrained=str(path)), weights={"model.pretrained": digest})
    assert with_digests(config) == config
    with pytest.raises(ClipTrainError, match=rf"has the SHA-256 {digest}, and not weights.'model.pretrained' = 'abc'"):
        with_digests(replace(config, weights={"model.pretrained": "abc"}))
    with pytest.raises(ClipTrainError, match=r"weights.'model.name' is a digest of nothing: .* are model.pretrained"):
        with_digests(replace(config, weights={"model.name": digest}))
    RunFolder(resolve(config))
    assert not (tmp_path / "run").exists()
