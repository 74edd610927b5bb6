"""Recipe keys of the model: what they change, what they lock, and what they refuse."""

from dataclasses import replace

import pytest
import torch

from clip_core.errors import ClipError
from clip_models import create_model, save_model
from clip_train import DataConfig, FitConfig, LockConfig, ModelConfig, OptimConfig, Source, TrainConfig, fit
from clip_train.config import resolve
from clip_train.errors import ClipTrainError
from clip_train.model import can_draw_later, make_model
from clip_train.tasks.classification import ClassificationConfig
from clip_train.tasks.contrastive import PairConfig
from clip_train.tasks.siglip import SigLIPConfig

NAME = "ViT-Ti-4-24"


def make(**keys):
    return make_model(ModelConfig(name=NAME, **keys), seed=0)


def test_sizes_preprocessing_and_dropout_are_those_of_the_recipe():
    keys = {
        "image_size": 32,
        "context_length": 16,
        "patch_dropout": 0.25,
        "mean": (0.1, 0.2, 0.3),
        "std": (0.4, 0.5, 0.6),
    }
    model = make(**keys, interpolation="bilinear", quick_gelu=True)
    spec = model.spec
    assert (spec.preprocess.size, spec.preprocess.mean, spec.preprocess.std) == ((32, 32), keys["mean"], keys["std"])
    assert (spec.preprocess.interpolation, spec.quick_gelu, spec.vision.patch_dropout) == ("bilinear", True, 0.25)
    assert model.encode_image(torch.zeros(1, 3, 32, 32)).shape == (1, spec.embed_dim)
    assert model.encode_text(torch.zeros(1, 16, dtype=torch.long)).shape == (1, spec.embed_dim)


def test_towers_start_from_their_own_files(tmp_path):
    for number in (1, 2):
        other = create_model(NAME, seed=number)
        save_model(tmp_path / f"{number}.safetensors", other, other.spec)
    model = make(pretrained_image=str(tmp_path / "1.safetensors"), pretrained_text=str(tmp_path / "2.safetensors"))
    image, text = create_model(NAME, seed=1), create_model(NAME, seed=2)
    assert torch.equal(model.visual.proj, image.visual.proj)
    assert torch.equal(model.token_embedding.weight, text.token_embedding.weight)


@pytest.mark.slow
def test_a_locked_tower_keeps_its_weights_and_the_rest_is_trained(tmp_path, datasets):
    lock = LockConfig(image=True, image_unlocked_groups=1)
    config = FitConfig(
        run=str(tmp_path / "run"),
        model=ModelConfig(name=NAME, lock=lock),
        data=DataConfig(sources=(Source(dataset=str(datasets / "train")),), workers=0),
        optim=OptimConfig(lr=1e-2),
        train=TrainConfig(steps=2, batch_size=8, precision="fp32", threads=1),
    )
    before = create_model(NAME, seed=0)
    after = create_model(NAME, fit(config).model)
    head = set(before.layer_groups()["image"][-1])
    for name, parameter in before.named_parameters():
        locked = name.startswith("visual.") and name not in head
        assert torch.equal(parameter, after.get_parameter(name)) == locked, name


@pytest.mark.parametrize(
    ("lock", "message"),
    [
        (LockConfig(image_unlocked_groups=2), r"model\.lock\.image_unlocked_groups = 2 requires model\.lock\.image"),
        (LockConfig(text=True, text_unlocked_groups=-1), r"text_unlocked_groups = -1 must be at least 0"),
        (LockConfig(image_freeze_batch_norms=True), r"image_freeze_batch_norms requires model\.lock\.image"),
        (LockConfig(text_freeze_norms=False), r"text_freeze_norms = false requires model\.lock\.text"),
    ],
)
def test_a_lock_without_an_effect_is_refused(lock, message):
    config = FitConfig(
        run="run",
        model=ModelConfig(name=NAME),
        data=DataConfig(sources=(Source(dataset="d"),)),
        train=TrainConfig(steps=1),
    )
    with pytest.raises(ClipTrainError, match=message):
        resolve(replace(config, model=ModelConfig(name=NAME, lock=lock)))


def test_a_model_without_a_weight_to_train_is_refused():
    with pytest.raises(ClipTrainError, match="locks every weight of both towers"):
        make(lock=LockConfig(image=True, text=True))


@pytest.mark.parametrize(("keys", "message"), [({"patch_dropout": 1.5}, r"1\.5"), ({"context_length": 0}, "0")])
def test_a_value_that_the_tower_cannot_have_is_named(keys, message):
    with pytest.raises(ClipError, match=message):
        make(**keys)


@pytest.mark.parametrize(
    ("model", "task", "later"),
    [
        (ModelConfig(name="ViT-Ti-4-24"), SigLIPConfig, True),
        (ModelConfig(name="ViT-Ti-4-24", pretrained="a.safetensors"), SigLIPConfig, False),
        (ModelConfig(name="ViT-B-16-SigLIP"), SigLIPConfig, True),  # a trunk of timm
        (ModelConfig(name="ViT-Ti-4-24"), ClassificationConfig, False),
        (ModelConfig(name="ViT-Ti-4-24"), PairConfig, False),  # the base of tasks from outside
    ],
)
def test_weights_are_drawn_later_only_where_nothing_reads_them_before(model, task, later):
    assert can_draw_later(model, read=task.reads_weights) == later
