"""Towers with batch norms: two ranks compute what one process does on the whole batch."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from clip_models import ModelSpec, ResNetConfig, TimmConfig, get_model_spec, get_tokenizer
from clip_models.model import build_model
from clip_train.gradients import Gradients
from clip_train.parallel import World, join_world
from clip_train.parallelize.config import ParallelConfig
from clip_train.parallelize.placement import place
from clip_train.tasks.contrastive import ContrastiveConfig
from tests.support.distributed import run_ranks
from tests.support.steps import FP32, whole

PAIRS = 12
VISION = {
    "native": ResNetConfig(image_size=32, layers=(1, 1, 1, 1), width=16, head_width=32),
    "timm": TimmConfig(image_size=32, model_name="test_efficientnet", pool="avg", proj="linear"),
}


def spec_of(kind: str) -> ModelSpec:
    spec = get_model_spec("ViT-Ti-4-24")
    return replace(spec, name=kind, vision=VISION[kind], preprocess=replace(spec.preprocess, size=(32, 32)))


def one_step(kind: str, world: World, training: bool = True, parallel: ParallelConfig = FP32) -> dict[str, np.ndarray]:
    """The loss, gradients and running statistics of this rank's share of twelve pairs."""
    torch.manual_seed(0)
    task = ContrastiveConfig().build(build_model(spec_of(kind)), precision="fp32", world=world)
    generator, share = np.random.default_rng(0), slice(world.rank, None, world.size)
    images = generator.integers(0, 256, (PAIRS, 3, 32, 32), dtype=np.uint8)
    text = get_tokenizer("ViT-Ti-4-24").encode_numpy([f"number {number}" for number in range(PAIRS)])
    task.model.train(training)
    batch = task.prepare({"image": images[share], "text": text[share]})
    loss = Gradients(task, world, parallel).backward(batch, 0)["loss"]
    values = {"loss": loss, **{f"grad {name}": p.grad for name, p in task.model.named_parameters()}}
    return {name: whole(t).double().numpy() for name, t in {**values, **dict(task.model.named_buffers())}.items()}


def on_ranks(kind: str, training: bool, parallel: ParallelConfig) -> dict[str, np.ndarray]:
    with join_world("cpu") as world:
        return one_step(kind, world, training, parallel)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "training", "parallel"),
    [
        ("native", True, "ddp"),
        ("native", True, "fsdp"),
        ("native", False, "ddp"),
        ("timm", True, "ddp"),
        ("timm", True, "fsdp"),
        ("timm", False, "fsdp"),
    ],
)
def test_two_ranks_have_the_gradient_and_the_statistics_of_one(kind, training, parallel):
    pytest.importorskip("timm")
    alone = one_step(kind, World(0, 1, torch.device("cpu")), training)
    both = run_ranks(2, on_ranks, kind, training, replace(FP32, parallel=parallel))
    assert sum("running_var" in name for name in alone) >= 5
    gradients = [name for name in alone if name.startswith("grad")]
    for rank in both:
        # As one vector: a gradient that is zero but for rounding has no relative error of its own.
        found, wanted = (np.concatenate([side[name].ravel() for name in gradients]) for side in (rank, alone))
        assert np.linalg.norm(found - wanted) < 1e-5 * np.linalg.norm(wanted)
        for name in alone.keys() - set(gradients):
            np.testing.assert_allclose(rank[name], alone[name], rtol=1e-5, atol=1e-6, err_msg=name)


def on_unequal_ranks() -> list[float]:
    with join_world("cpu") as world:
        layer = torch.nn.BatchNorm1d(1, affine=False, track_running_stats=False).eval()
        place(torch.nn.Sequential(layer, torch.nn.Linear(1, 1)), [], world, ParallelConfig())
        values = torch.tensor([[-1.0], [1.0]])
        if world.leads:  # as in validation, where a batch is one rank's alone
            return layer(values).flatten().tolist()
    return []


@pytest.mark.slow
def test_a_layer_in_eval_mode_needs_no_other_rank():
    assert run_ranks(2, on_unequal_ranks)[0] == pytest.approx([-1, 1], abs=1e-4)
