import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from open_clip.loss import SigLipLoss

from clip_models import CLIP, ModelSpec, create_model, get_model_spec, get_tokenizer, load_model, save_model
from clip_models.model import build_model
from clip_train import TaskConfig
from clip_train.errors import ClipTrainError
from clip_train.gradients import Gradients
from clip_train.losses.positives import caption_groups
from clip_train.optim.build import make_optimizer
from clip_train.optim.config import OptimConfig
from clip_train.parallel import World
from clip_train.tasks.base import Task
from clip_train.tasks.coca import CoCaConfig
from clip_train.tasks.contrastive import ContrastiveConfig
from clip_train.tasks.siglip import SigLIPConfig
from clip_train.tasks.temperature import LogitBiasConfig, LogitScaleConfig
from tests.support import dense_losses as dense
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
        (ContrastiveConfig(positives=""), VIT, r"task\.positives is empty: choose pair, captions, or a column"),
        (
            ContrastiveConfig(logit_scale=LogitScaleConfig(init=200.0)),
            VIT,
            r"task\.logit_scale\.init = 200\.0 must be in \[1, 100\] for a trained one",
        ),
        (ContrastiveConfig(logit_scale=LogitScaleConfig(max=0.5)), VIT, r"logit_scale\.max = 0\.5 must be in \[1, "),
        (
            SigLIPConfig(logit_bias=LogitBiasConfig(init=math.nan)),
            SIGLIP,
            r"task\.logit_bias\.init = nan must be finite",
        ),
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


def test_the_scale_and_the_bias_are_set_and_can_be_fixed():
    fixed = LogitScaleConfig(init=250.0, learnable=False)
    config = ContrastiveConfig(logit_scale=fixed)
    config.check(VIT)
    task = config.build(build_model(VIT), precision="fp32", world=HERE)
    task.after_step()
    assert task.report() == {"logit_scale": pytest.approx(250.0, rel=1e-5)}
    assert not task.model.logit_scale.requires_grad
    assert "logit_scale" not in optimised(task)

    trained = ContrastiveConfig(logit_scale=LogitScaleConfig(init=2.0, max=5.0))
    task = trained.build(build_model(VIT), precision="fp32", world=HERE)
    assert "logit_scale" in optimised(task)
    task.model.logit_scale.data.fill_(9.0)
    task.after_step()
    assert task.report()["logit_scale"] == pytest.approx(5.0, rel=1e-5)


def optimised(task: Task) -> set[str]:
    """The parameters that the optimizer updates."""
    groups = make_optimizer(task.model, OptimConfig()).param_groups
    trained = {id(parameter) for group in groups for parameter in group["params"]}
    return {name for name, parameter in task.model.named_parameters() if id(parameter) in trained}


def test_a_model_gets_the_bias_of_openclip_s_siglip_flag(tmp_path):
    """OpenCLIP's --siglip makes any dual encoder with a scale of 10 and a bias of -10."""
    config = SigLIPConfig(logit_scale=LogitScaleConfig(init=10.0), logit_bias=LogitBiasConfig(init=-10.0))
    config.check(VIT)
    task = config.build(build_model(VIT), precision="fp32", world=HERE)
    assert task.report() == {"logit_scale": pytest.approx(10.0), "logit_bias": -10.0}
    prepared = task.prepare(make_batch())
    features = task.compute(prepared).features
    theirs = SigLipLoss()(features["image"], features["text"], torch.tensor(10.0), torch.tensor(-10.0))
    assert Gradients(task, HERE).backward(prepared, 0)["loss"].item() == pytest.approx(theirs.item(), rel=1e-5)
    assert task.model.logit_bias.grad is not None
    save_model(tmp_path / "model.safetensors", task.model, task.model.spec)
    assert load_model(tmp_path / "model.safetensors")[0].logit_bias.item() == -10.0

    fixed = SigLIPConfig(logit_bias=LogitBiasConfig(learnable=False))
    task = fixed.build(build_model(SIGLIP), precision="fp32", world=HERE)
    assert "logit_bias" not in optimised(task)


CLUSTERS = ["a", None, "a", 3, None, 3]


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize(("kind", "formula"), [(ContrastiveConfig, dense.contrastive), (SigLIPConfig, dense.sigmoid)])
@pytest.mark.parametrize("positives", ["captions", "dedup.cluster"])
def test_duplicates_are_positives_of_each_other(positives, kind, formula, parts):
    spec = SIGLIP if kind is SigLIPConfig else VIT
    config = kind(positives=positives)
    config.check(spec)
    torch.manual_seed(0)
    task = config.build(build_model(spec), precision="fp32", world=HERE)
    assert task.columns == (() if positives == "captions" else (positives,))
    batch = make_batch()
    batch["text"][4] = batch["text"][1]
    prepared = task.prepare({**batch, "dedup.cluster": CLUSTERS})
    groups = torch.tensor([0, 1, 2, 3, 1, 5] if positives == "captions" else [7, -1, 7, 9, -1, 9])
    same = prepared["group"][:, None] == prepared["group"]
    if positives != "captions":
        assert prepared["group"][[1, 4]].tolist() == [-1, -1]
    assert torch.equal(same, groups[:, None] == groups)

    out = task.compute(prepared)
    wanted = formula(*out.features.values(), *out.shared.values(), groups=groups)
    scale = task.model.logit_scale
    (slope,) = torch.autograd.grad(wanted, scale)
    assert Gradients(task, HERE, micro_batches=parts).backward(prepared, 0)["loss"].item() == pytest.approx(
        wanted.item(), rel=1e-5
    )
    assert scale.grad.item() == pytest.approx(slope.item(), rel=1e-4, abs=1e-6)
    if (positives, kind) != ("captions", ContrastiveConfig):  # equal logits: however the target is shared out
        assert wanted.item() != pytest.approx(formula(*out.features.values(), *out.shared.values()).item(), rel=1e-3)


def test_hashes_of_captions_depend_on_every_token_and_its_place():
    rows = torch.tensor([[1, 2, 3, 0], [1, 3, 2, 0], [1, 2, 3, 0], [1, 2, 3, 1], [0, 1, 2, 3]])
    found = caption_groups(rows)
    assert found[0] == found[2]
    assert len(set(found.tolist())) == 4
    assert (found >= 0).all()


def test_positives_need_a_loss_with_groups(monkeypatch):
    monkeypatch.setattr("tests.clip_train.outside.pairs", lambda image, text, scale, *, ranks: None, raising=False)
    config = ContrastiveConfig(loss="tests.clip_train.outside:pairs", positives="captions")
    with pytest.raises(ClipTrainError, match=r"does not take what the task sets: .*'groups'"):
        config.build(build_model(VIT), precision="fp32", world=HERE)
