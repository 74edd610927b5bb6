"""Every architecture fits its tasks or is refused by name, and every kind of image tower makes a step under each."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from clip_models import TimmConfig, get_model_spec, list_models
from clip_models.model import build_model
from clip_models.specs import ResNetConfig, ViTConfig
from clip_train import TaskConfig
from clip_train.errors import ClipTrainError
from clip_train.gradients import Gradients
from clip_train.optim.build import make_optimizer
from clip_train.optim.config import OptimConfig
from clip_train.tasks.coca import CoCaConfig
from clip_train.tasks.contrastive import ContrastiveConfig
from clip_train.tasks.distillation import DistillationConfig
from clip_train.tasks.global_contrastive import GlobalContrastiveConfig
from clip_train.tasks.siglip import SigLIPConfig
from tests.support import coca
from tests.support.steps import FP32, HERE, PAIRS, VIT, TaughtConfig, batch_of

TASKS: dict[str, TaskConfig] = {
    "contrastive": ContrastiveConfig(),
    "siglip": SigLIPConfig(),
    "global": GlobalContrastiveConfig(gamma_epochs=1),
    "distillation": TaughtConfig(teacher="x"),
    "coca": CoCaConfig(),
}


def refusal(config: TaskConfig, spec) -> str:
    """The message with which a task refuses a model, or ""."""
    try:
        config.check(spec)
    except ClipTrainError as error:
        return str(error)
    return ""


def test_every_architecture_is_taken_or_refused_by_name():
    taken = {task: set() for task in TASKS}
    for name in list_models():
        spec = get_model_spec(name)
        for task, config in TASKS.items():
            message = refusal(config, spec)
            assert not message or repr(name) in message
            if not message:
                taken[task].add(name)
    every = set(list_models())
    decoders = {name for name in every if get_model_spec(name).decoder is not None}
    biased = {name for name in every if get_model_spec(name).init_logit_bias is not None}
    assert taken["coca"] == decoders
    assert taken["siglip"] == biased - decoders
    assert taken["contrastive"] == taken["global"] == taken["distillation"] == every - decoders - biased
    assert min(map(len, taken.values())) > 3


SMALL = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16}
TOWERS = {
    "ViT": ViTConfig(**SMALL),
    "ViT, mean of patches, fixed positions": ViTConfig(
        **SMALL, pool_type="avg", pos_embed_type="sin_cos_2d", no_ln_pre=True, final_ln_after_pool=True
    ),
    "ViT, LayerScale, patch dropout": ViTConfig(**SMALL, ls_init_value=0.1, patch_dropout=0.5, gelu_tanh=True),
    "ViT, attentional pool": ViTConfig(**SMALL, attentional_pool=True, attn_pooler_queries=4, attn_pooler_heads=2),
    "ResNet": ResNetConfig(image_size=32, layers=(1, 1, 1, 1), width=16, head_width=32),
    "timm ViT": TimmConfig(image_size=32, model_name="test_vit", pool="avg", proj="linear"),
    "timm ViT, map": TimmConfig(image_size=32, model_name="test_vit3", pool="map", proj="linear"),
    "timm ConvNeXt": TimmConfig(image_size=64, model_name="test_convnext", pool="", proj="mlp"),
    "timm ConvNeXt, attention": TimmConfig(image_size=64, model_name="test_convnext", pool="rot_attn", proj="linear"),
    "timm, batch norms": TimmConfig(image_size=64, model_name="test_efficientnet", pool="avg", proj="linear"),
}


@pytest.mark.slow
@pytest.mark.parametrize("tower", TOWERS)
def test_one_step_of_every_kind_of_image_tower_under_every_task(tower):
    vision = TOWERS[tower]
    if isinstance(vision, TimmConfig):
        pytest.importorskip("timm")
    size = (vision.image_size,) * 2
    plain = replace(VIT, name=tower, vision=vision, preprocess=replace(VIT.preprocess, size=size))
    for name, config in TASKS.items():
        if name == "coca":
            continue
        step(config, replace(plain, init_logit_bias=-3.0) if name == "siglip" else plain)


@pytest.mark.slow
@pytest.mark.parametrize("spec", [coca.TINY, replace(coca.PLAIN, init_logit_bias=None)], ids=["queries", "patches"])
def test_one_step_of_every_kind_of_coca(spec):
    step(CoCaConfig(), spec)


def step(config: TaskConfig, spec) -> None:
    """Makes a step that changes every parameter, and leaves finite weights."""
    config.check(spec)
    torch.manual_seed(0)
    task = config.build(build_model(spec), precision="fp32", world=HERE)
    task.start(type("Samples", (), {"samples": PAIRS}), None, batch_size=PAIRS)
    optimizer = make_optimizer(task.model, OptimConfig(lr=1e-3))
    batch = task.prepare(batch_of(task, range(PAIRS)) | {"ordinal": np.arange(PAIRS)})
    losses = Gradients(task, HERE, FP32).backward(batch, 0)
    assert losses["loss"].isfinite()
    idle = [name for name, p in task.model.named_parameters() if p.requires_grad and p.grad is None]
    assert not idle
    before = {name: p.detach().clone() for name, p in task.model.named_parameters()}
    optimizer.step()
    after = dict(task.model.named_parameters())
    assert all(p.isfinite().all() for p in after.values())
    same = [name for name, p in after.items() if torch.equal(p, before[name])]
    assert len(same) < len(after) / 4, same


def test_a_coca_with_a_bias_is_refused():
    message = refusal(CoCaConfig(), replace(coca.TINY, init_logit_bias=-3.0))
    assert "'coca-tiny'" in message
    assert "its logit_bias" in message


@pytest.mark.parametrize("tower", ["vision", "text"])
@pytest.mark.parametrize("config", [ContrastiveConfig(), DistillationConfig(teacher="x"), SigLIPConfig()])
def test_towers_that_do_not_pool_are_refused_before_anything_is_built(tower, config):
    spec = replace(VIT, **{tower: replace(getattr(VIT, tower), pool_type="none")})
    with pytest.raises(ClipTrainError, match=rf"'ViT-Ti-4-24' .* {tower}\.pool_type = 'none'"):
        config.check(spec)
