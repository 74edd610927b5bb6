import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from clip_models import CLIP, ModelSpec, create_model, get_model_spec, get_tokenizer
from clip_models.model import build_model
from clip_train import TaskConfig
from clip_train.errors import ClipTrainError
from clip_train.gradients import Gradients
from clip_train.parallel import World
from clip_train.tasks.base import Task
from clip_train.tasks.coca import CoCaConfig
from clip_train.tasks.contrastive import ContrastiveConfig
from clip_train.tasks.siglip import SigLIPConfig
from tests.support.coca import TINY as COCA

HERE = World(0, 1, torch.device("cpu"))


def build(model: CLIP, precision: str = "fp32") -> Task:
    return ContrastiveConfig().build(model, precision=precision, world=HERE)


def make_task(precision: str = "fp32") -> Task:
    return build(create_model("ViT-Ti-4-24", seed=0), precision)


def make_batch(pairs: int = 6) -> dict[str, np.ndarray]:
    images = np.random.default_rng(0).integers(0, 256, (pairs, 3, 24, 24), dtype=np.uint8)
    captions = [f"a box, number {number} of {'very ' * number} many" for number in range(pairs)]
    return {"image": images, "text": get_tokenizer("ViT-Ti-4-24").encode_numpy(captions)}


def test_images_are_normalised_by_the_mean_and_std_of_the_model():
    batch, spec = make_batch(), get_model_spec("ViT-Ti-4-24")
    spec = replace(spec, preprocess=replace(spec.preprocess, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.5)))
    task, seen = build(build_model(spec)), []
    task.model.visual.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    prepared = task.prepare(batch)
    assert prepared["image"].dtype == torch.uint8
    task.evaluate(prepared)
    mean, std = (np.array(values).reshape(3, 1, 1) for values in ((0.5, 0.4, 0.3), (0.2, 0.25, 0.5)))
    np.testing.assert_allclose(seen[0].numpy(), (batch["image"] / 255 - mean) / std, atol=1e-5)
    assert seen[0].dtype == torch.float32


def test_bf16_is_near_fp32_and_its_loss_is_fp32():
    batch = make_batch()
    losses = {}
    for precision in ("fp32", "bf16"):
        task = make_task(precision)
        losses[precision] = Gradients(task, HERE).backward(task.prepare(batch), 0)["loss"]
    assert losses["bf16"].dtype == torch.float32
    assert losses["bf16"].item() != losses["fp32"].item()
    assert losses["bf16"].item() == pytest.approx(losses["fp32"].item(), rel=0.02)


def test_evaluation_has_no_gradient_and_goes_back_to_training():
    task, batch = make_task(), make_batch()
    task.model.train()
    prepared = task.prepare(batch)
    loss = task.evaluate(prepared)
    assert not loss.requires_grad
    assert task.model.training
    assert loss.item() == pytest.approx(Gradients(task, HERE).backward(prepared, 0)["loss"].item(), rel=1e-6)


@pytest.mark.parametrize(("before", "after"), [(9.0, math.log(100)), (-1.0, 0.0), (3.0, 3.0)])
def test_the_logit_scale_stays_between_1_and_100(before, after):
    task = make_task()
    scale = task.model.get_parameter("logit_scale")
    scale.data.fill_(before)
    task.after_step()
    assert scale.item() == pytest.approx(after)
    assert task.report()["logit_scale"].item() == pytest.approx(math.exp(after), rel=1e-5)


VIT = get_model_spec("ViT-Ti-4-24")


SIGLIP = replace(VIT, name="siglip", init_logit_bias=-10.0)


@pytest.mark.parametrize(
    ("config", "spec", "reason"),
    [
        (ContrastiveConfig(), COCA, "'coca-tiny' does not fit this task: it is a CoCa, .* 'coca'"),
        (ContrastiveConfig(), SIGLIP, "'siglip' .* its logit_bias would be ignored; choose task.kind = 'siglip'"),
        (SigLIPConfig(), VIT, "'ViT-Ti-4-24' does not fit task.kind = 'siglip': it has no init_logit_bias"),
        (SigLIPConfig(), replace(COCA, init_logit_bias=-10.0), "does not fit task.kind = 'siglip': it is a CoCa"),
        (CoCaConfig(), VIT, "'ViT-Ti-4-24' does not fit task.kind = 'coca': it has no decoder"),
        (CoCaConfig(caption_weight=-1.0), COCA, r"task\.caption_weight = -1\.0 must be at least 0"),
    ],
)
def test_a_model_of_another_objective_is_refused(config: TaskConfig, spec: ModelSpec, reason: str):
    with pytest.raises(ClipTrainError, match=reason):
        config.check(spec)


@pytest.mark.parametrize("tower", ["vision", "text"])
def test_a_model_without_pooling_is_refused(tower):
    spec = replace(VIT, **{tower: replace(getattr(VIT, tower), pool_type="none")})
    task = build(build_model(spec))
    with pytest.raises(ClipTrainError, match="not one vector for each image and caption"):
        task.evaluate(task.prepare(make_batch()))
