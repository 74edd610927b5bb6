"""The gradient of a step is that of one process on the whole batch, however ranks and micro-batches divide it."""

import hashlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch

from clip_models import CLIP, ModelSpec, TimmConfig, get_model_spec
from clip_models.model import build_model
from clip_train import TaskConfig
from clip_train.errors import ClipTrainError
from clip_train.gradients import Gradients
from clip_train.parallel import World, join_world
from clip_train.tasks.base import Task
from clip_train.tasks.coca import CoCaConfig
from clip_train.tasks.contrastive import ContrastiveConfig
from clip_train.tasks.distillation import DistillationConfig
from clip_train.tasks.siglip import SigLIPConfig
from clip_train.tasks.teacher import TeacherTask
from tests.support import coca
from tests.support.distributed import run_ranks

PAIRS = 12
HERE = World(0, 1, torch.device("cpu"))
VIT = get_model_spec("ViT-Ti-4-24")
TIMM = TimmConfig(image_size=32, model_name="test_vit", pool="avg", proj="linear", drop_path=0.4, patch_dropout=0.5)


@dataclass(frozen=True, kw_only=True)
class TaughtConfig(DistillationConfig):
    """Learns from a random teacher with larger images, wider features and a shorter context than the student."""

    def build(self, model: CLIP, *, precision: str, world: World) -> Task:
        preprocess = replace(VIT.preprocess, size=(32, 32), mean=(0.5, 0.5, 0.5))
        vision, text = replace(VIT.vision, image_size=32), replace(VIT.text, context_length=20)
        with torch.random.fork_rng():
            torch.manual_seed(9)
            teacher = build_model(replace(VIT, embed_dim=24, preprocess=preprocess, vision=vision, text=text))
        return TeacherTask(model, teacher, self, precision=precision, world=world)


CASES: dict[str, tuple[TaskConfig, ModelSpec]] = {
    "contrastive": (ContrastiveConfig(), VIT),
    "patch dropout": (ContrastiveConfig(), replace(VIT, vision=replace(VIT.vision, patch_dropout=0.5))),
    "drop path": (ContrastiveConfig(), replace(VIT, vision=TIMM, preprocess=replace(VIT.preprocess, size=(32, 32)))),
    "siglip": (SigLIPConfig(), replace(VIT, init_logit_bias=-3.0)),
    "coca": (CoCaConfig(), coca.TINY),
    "coca, OpenCLIP's mean": (CoCaConfig(caption_mean="rank"), coca.TINY),
    "distillation": (TaughtConfig(teacher="x", temperature=2.0, distillation_weight=0.5), VIT),
    "options": (ContrastiveConfig(label_smoothing=0.1, matryoshka=(8, VIT.embed_dim)), VIT),
}


def batch_of(task: Task, rows: range) -> dict[str, Any]:
    """Samples whose captions differ in length from rank to rank and from part to part."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (PAIRS, 3, *task.image_size), dtype=np.uint8)
    tokens = []
    for text in (spec.text for spec in task.text_specs):
        ids = generator.integers(1, text.vocab_size - 2, (PAIRS, text.context_length))
        for row, length in enumerate(generator.integers(3, text.context_length - 1, PAIRS)):
            ids[row, length] = text.vocab_size - 1
            ids[row, length + 1 :] = 0
        tokens.append(ids)
    uids = [hashlib.sha256(bytes([row])).hexdigest()[:32] for row in rows]
    return {"image": images[list(rows)], "text": np.concatenate(tokens, axis=1)[list(rows)], "uid": uids}


def one_step(name: str, world: World, parts: int, step: int = 3, rows: range | None = None) -> dict[str, np.ndarray]:
    config, spec = CASES[name]
    torch.manual_seed(0)
    task = config.build(build_model(spec), precision="fp32", world=world)
    gradients = Gradients(task, world, micro_batches=parts, seed=1)
    size = PAIRS // world.size
    mine = range(world.rank * size, (world.rank + 1) * size) if rows is None else rows
    losses = gradients.backward(task.prepare(batch_of(task, mine)), step)
    found = {name: loss for name, loss in losses.items()}
    found |= {f"grad {name}": p.grad for name, p in task.model.named_parameters() if p.grad is not None}
    return {name: value.double().numpy() for name, value in found.items()}


def on_ranks(parts: int) -> dict[str, dict[str, np.ndarray]]:
    with join_world("cpu") as world:
        return {name: one_step(name, world, parts) for name in CASES if "OpenCLIP" not in name}


def assert_same(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert found.keys() == wanted.keys()
    gradients = [name for name in wanted if name.startswith("grad ")]
    # As one vector: a gradient that is zero but for rounding has no relative error of its own.
    one, other = (np.concatenate([side[name].ravel() for name in gradients]) for side in (found, wanted))
    assert np.linalg.norm(one - other) < 1e-5 * np.linalg.norm(other)
    for name in wanted.keys() - set(gradients):
        assert found[name] == pytest.approx(wanted[name], rel=1e-5)
    scale = "grad logit_scale"
    assert found[scale] == pytest.approx(wanted[scale], rel=1e-4)


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
