"""One optimizer step of every task at tiny size, and the comparison of its gradient with another one."""

import hashlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributed.tensor import DTensor

from clip_models import CLIP, ModelSpec, TimmConfig, get_model_spec
from clip_models.model import build_model
from clip_train import TaskConfig
from clip_train.gradients import Gradients
from clip_train.parallel import World
from clip_train.parallelize.config import ParallelConfig
from clip_train.tasks.base import Task
from clip_train.tasks.coca import CoCaConfig
from clip_train.tasks.contrastive import ContrastiveConfig
from clip_train.tasks.distillation import DistillationConfig
from clip_train.tasks.siglip import SigLIPConfig
from clip_train.tasks.teacher import TeacherTask
from tests.support import coca

PAIRS = 12
FP32 = ParallelConfig(precision="fp32")
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


def one_step(
    name: str,
    world: World,
    parts: int,
    step: int = 3,
    rows: range | None = None,
    parallel: ParallelConfig = FP32,
) -> dict[str, np.ndarray]:
    """The losses of a step, and the whole gradient of each parameter."""
    config, spec = CASES[name]
    torch.manual_seed(0)
    task = config.build(build_model(spec), precision=parallel.precision, world=world)
    gradients = Gradients(task, world, parallel, micro_batches=parts, seed=1)
    size = PAIRS // world.size
    mine = range(world.rank * size, (world.rank + 1) * size) if rows is None else rows
    losses = gradients.backward(task.prepare(batch_of(task, mine)), step)
    found = {name: loss for name, loss in losses.items()}
    found |= {f"grad {name}": p.grad for name, p in task.model.named_parameters() if p.grad is not None}
    return {name: whole(value).double().numpy() for name, value in found.items()}


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


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
