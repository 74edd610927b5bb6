"""The gradient of a step is that of one process on the whole batch, however ranks and micro-batches divide it."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from clip_models import get_model_spec
from clip_models.model import build_model
from clip_train.errors import ClipTrainError
from clip_train.gradients import Gradients
from clip_train.parallel import join_world
from clip_train.tasks.contrastive import ContrastiveConfig
from tests.support.distributed import run_ranks
from tests.support.steps import CASES, HERE, PAIRS, TIMM, assert_same, one_step


def on_ranks(parts: int) -> dict[str, dict[str, np.ndarray]]:
    with join_world("cpu") as world:
        return {name: one_step(name, world, parts) for name in CASES if "OpenCLIP" not in name}


@pytest.mark.parametrize("parts", [2, 3])
@pytest.mark.parametrize("name", CASES)
def test_micro_batches_have_the_gradient_of_the_whole_batch(name, parts):
    if name == "drop path":
        pytest.importorskip("timm")
    assert_same(one_step(name, HERE, parts), one_step(name, HERE, 1))


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "parts"), [(2, 3), (3, 1), (4, 1)])
def test_ranks_have_the_gradient_of_one_process(ranks, parts):
    pytest.importorskip("timm")
    wanted = {name: one_step(name, HERE, 1) for name in CASES}
    for found in run_ranks(ranks, on_ranks, parts):
        for name in found:
            assert_same(found[name], wanted[name])


@pytest.mark.parametrize("name", ["patch dropout", "drop path"])
def test_draws_belong_to_the_sample_and_the_step(name):
    if name == "drop path":
        pytest.importorskip("timm")
    first, again, other = (one_step(name, HERE, 1, step) for step in (3, 3, 4))
    assert first["loss"] == again["loss"] != other["loss"]
    backwards = one_step(name, HERE, 1, rows=range(PAIRS)[::-1])
    assert_same(backwards, first)


def test_activation_dropout_is_repeated_in_the_second_pass(monkeypatch):
    pytest.importorskip("timm")
    case = replace(CASES["drop path"][1], vision=replace(TIMM, drop=0.3, drop_path=None))
    monkeypatch.setitem(CASES, "dropout", (ContrastiveConfig(), case))
    seen = []

    def dropout(layer: torch.nn.Dropout, x: torch.Tensor) -> torch.Tensor:
        seen.append(torch.nn.functional.dropout(x, layer.p))
        return seen[-1]

    monkeypatch.setattr(torch.nn.Dropout, "forward", dropout)
    one_step("dropout", HERE, 2)
    first, second = seen[: len(seen) // 2], seen[len(seen) // 2 :]
    assert first
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    assert any((one == 0).any() for one in first)


def test_a_model_with_batch_norms_is_refused():
    spec = get_model_spec("RN50")
    small = replace(spec, vision=replace(spec.vision, layers=(1, 1, 1, 1), width=16, head_width=32))
    task = ContrastiveConfig().build(build_model(small), precision="fp32", world=HERE)
    frozen = ContrastiveConfig().build(build_model(small), precision="fp32", world=HERE)
    frozen.model.lock_image_tower(freeze_bn_stats=True)
    Gradients(frozen, HERE, micro_batches=2)
    with pytest.raises(ClipTrainError, match=r"micro_batches must be 1 .* batch norms \(visual\.bn1 and \d+ more\)"):
        Gradients(task, HERE, micro_batches=2)
