"""torch.compile of blocks, towers and steps, with what they are combined with. aot_eager traces as inductor does."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from clip_models import ResNetConfig
from clip_train.errors import ClipTrainError
from clip_train.parallel import join_world
from clip_train.parallelize.config import ParallelConfig
from clip_train.tasks.contrastive import ContrastiveConfig
from tests.support import steps, training
from tests.support.distributed import run_ranks
from tests.support.steps import FP32, HERE, VIT
from tests.support.training import largest_difference, train

pytestmark = pytest.mark.slow
Case = tuple[str, ParallelConfig, int]
TRACED = replace(FP32, compile_backend="aot_eager")


def case(task: str, level: str, recompute: str, parts: int, parallel: str = "auto") -> Case:
    return task, replace(TRACED, compile=level, grad_checkpointing=recompute, parallel=parallel), parts


def with_spec(**changes: object) -> str:
    """Adds a case of the contrastive task."""
    steps.CASES["this"] = ContrastiveConfig(), replace(VIT, **changes)
    return "this"


def shorten() -> None:
    """Leaves one layer of each tower: compiling takes as long as a test may."""
    for name, (task, spec) in steps.CASES.items():
        towers = {side: getattr(spec, side) for side in ("vision", "text")}
        short = {
            side: replace(tower, layers=1)
            for side, tower in towers.items()
            if isinstance(getattr(tower, "layers", None), int)
        }
        steps.CASES[name] = task, replace(spec, **short)


@pytest.fixture(autouse=True)
def short_towers_without_graphs(monkeypatch):
    monkeypatch.setattr(steps, "CASES", dict(steps.CASES))
    monkeypatch.setattr(training, "CASES", steps.CASES)
    shorten()
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("task", "parallel", "parts"),
    [
        case("patch dropout", "block", "full", 2),
        case("siglip", "step", "off", 1),
        case("coca", "model", "ops", 2),
        case("distillation", "model", "full", 1),
    ],
)
def test_what_is_compiled_trains_as_what_is_not(task, parallel, parts):
    assert largest_difference(train(task, HERE, parallel, parts), train(task, HERE)) < 1e-5


RANKS = [case("coca", "block", "full", 2, "fsdp"), case("distillation", "model", "ops", 1, "ddp")]


def on_ranks() -> list[dict[str, np.ndarray]]:
    shorten()
    with join_world("cpu") as world:
        found = []
        for task, parallel, parts in RANKS:
            torch._dynamo.reset()
            found.append(train(task, world, parallel, parts))
        return found


def test_two_ranks_compile_and_train_as_one_process():
    alone = [train(task, HERE) for task, *_ in RANKS]
    for found in run_ranks(2, on_ranks):
        for (task, parallel, _), values, wanted in zip(RANKS, found, alone, strict=True):
            assert largest_difference(values, wanted) < 1e-5, (task, parallel)


def test_statistics_of_batch_norms_are_updated_once():
    vision = ResNetConfig(image_size=32, layers=(1, 1, 1, 1), width=16, head_width=32)
    name = with_spec(vision=vision, preprocess=replace(VIT.preprocess, size=(32, 32)))
    found = train(name, HERE, replace(TRACED, compile="block", grad_checkpointing="full"))
    wanted = train(name, HERE)
    assert any(key.startswith("buffer ") and "running_mean" in key for key in found)
    assert largest_difference(found, wanted) < 1e-5


def test_inductor_trains_alike():
    name = with_spec(vision=replace(VIT.vision, layers=1), text=replace(VIT.text, layers=1))
    assert largest_difference(train(name, HERE, replace(FP32, compile="block")), train(name, HERE)) < 1e-5


def test_the_number_of_graphs_is_bounded():
    name = with_spec()
    with pytest.raises(ClipTrainError, match=r"train\.compile_limit = 1 times and meets another kind of input"):
        train(name, HERE, replace(TRACED, compile="block", compile_limit=1))  # the blocks of both towers share code


def test_a_backend_that_does_not_exist_is_named():
    with pytest.raises(ClipTrainError, match=r"train\.compile_backend = 'inductr' is not one of .*inductor"):
        train("contrastive", HERE, replace(FP32, compile="block", compile_backend="inductr"))
