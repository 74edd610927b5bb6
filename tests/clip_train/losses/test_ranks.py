"""Every loss with every option on 1 to 4 ranks: gradients as of one process that computes the formula in float64.

Towers are trained data-parallel; their parameters' gradients are averaged over the ranks by DistributedDataParallel.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip_train.losses.caption import caption_loss
from clip_train.losses.contrastive import contrastive_loss
from clip_train.losses.distillation import distillation_loss
from clip_train.losses.matryoshka import matryoshka
from clip_train.losses.sigmoid import sigmoid_loss
from clip_train.parallel import join_world
from clip_train.parallelize.config import ParallelConfig
from clip_train.parallelize.placement import place
from tests.support import dense_losses as dense
from tests.support.distributed import run_ranks

SAMPLES, VOCAB = 36, 11
DIMS, WEIGHTS = (3, 8, 16), (1.0, 0.5, 2.0)


@dataclass(frozen=True)
class Towers:
    """What the towers and the batch give a loss."""

    image: Tensor
    text: Tensor
    scale: Tensor
    bias: Tensor
    logits: Tensor
    groups: Tensor
    labels: Tensor
    teacher: tuple[Tensor, Tensor, Tensor]

    @property
    def pair(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.image, self.text, self.scale

    @property
    def biased_pair(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return *self.pair, self.bias


@dataclass(frozen=True)
class Case:
    ours: Callable[[Towers, int], Tensor]
    dense: Callable[[Towers, int], Tensor]
    """gets the whole batch, and the number of ranks"""
    scale: float = 20.0


def contrastive(scale: float = 20.0, tile: int | None = 5, **options: Any) -> Case:
    grouped = options.pop("grouped", False)

    def groups(t: Towers) -> dict[str, Tensor]:
        return {"groups": t.groups} if grouped else {}

    return Case(
        lambda t, ranks: contrastive_loss(*t.pair, ranks=ranks, tile=tile, **groups(t), **options),
        lambda t, ranks: dense.contrastive(*t.pair, **groups(t), **options),
        scale,
    )


def sigmoid(scale: float = 10.0, grouped: bool = False, **options: Any) -> Case:
    return Case(
        lambda t, ranks: sigmoid_loss(*t.biased_pair, ranks=ranks, groups=t.groups if grouped else None, **options),
        lambda t, ranks: dense.sigmoid(*t.biased_pair, groups=t.groups if grouped else None),
        scale,
    )


def distillation(scale: float = 20.0, temperature: float = 1.0, tile: int | None = 5) -> Case:
    return Case(
        lambda t, ranks: distillation_loss(*t.pair, *t.teacher, ranks=ranks, temperature=temperature, tile=tile),
        lambda t, ranks: dense.distillation(*t.pair, t.teacher, temperature),
        scale,
    )


def in_two_parts(t: Towers, ranks: int) -> Tensor:
    """The captions as two micro-batches, with the tokens of the whole batch as the count."""
    count = int((whole_batch()["labels"] != 0).sum())
    middle = len(t.labels) // 3
    parts = slice(0, middle), slice(middle, None)
    return sum(caption_loss(t.logits[part], t.labels[part], count=count, ranks=ranks) for part in parts)


CASES = {
    "contrastive": contrastive(),
    "contrastive, one tile": contrastive(tile=None),
    "contrastive, scale 100": contrastive(100.0),
    "contrastive, smoothing": contrastive(label_smoothing=0.1),
    "contrastive, groups": contrastive(grouped=True),
    "contrastive, groups and smoothing": contrastive(grouped=True, label_smoothing=0.2, tile=7),
    "sigmoid, ring": sigmoid(),
    "sigmoid, ring, chunks": sigmoid(chunk=4),
    "sigmoid, gather": sigmoid(exchange="gather", chunk=7),
    "sigmoid, ring, groups": sigmoid(grouped=True, chunk=5),
    "sigmoid, gather, groups": sigmoid(grouped=True, exchange="gather"),
    "sigmoid, scale 100": sigmoid(100.0),
    "distillation": distillation(),
    "distillation, temperature": distillation(temperature=3.0),
    "distillation, scale 100": distillation(100.0, tile=None),
    "caption": Case(
        lambda t, ranks: caption_loss(t.logits, t.labels, ranks=ranks),
        lambda t, ranks: dense.caption(t.logits, t.labels, 0),
    ),
    "caption, micro-batches": Case(in_two_parts, lambda t, ranks: dense.caption(t.logits, t.labels, 0)),
    "caption, mean of ranks": Case(
        lambda t, ranks: caption_loss(t.logits, t.labels, ranks=ranks, mean="rank"),
        lambda t, ranks: sum(
            dense.caption(logits, labels, 0) / ranks
            for logits, labels in zip(t.logits.chunk(ranks), t.labels.chunk(ranks), strict=True)
        ),
    ),
    "matryoshka": Case(
        lambda t, ranks: matryoshka(partial(contrastive_loss, tile=6), DIMS, WEIGHTS)(*t.pair, ranks=ranks),
        lambda t, ranks: dense.matryoshka(*t.pair, DIMS, WEIGHTS),
    ),
}


class Model(nn.Module):
    def __init__(self, scale: float) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.image, self.text, self.decoder = nn.Linear(6, 16), nn.Linear(5, 16), nn.Linear(5, 4 * VOCAB)
        self.logit_scale, self.logit_bias = (
            nn.Parameter(torch.tensor(math.log(scale))),
            nn.Parameter(torch.tensor(-5.0)),
        )

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, ...]:
        pair = F.normalize(self.image(image), dim=-1), F.normalize(self.text(text), dim=-1)
        return *pair, self.logit_scale.exp(), self.logit_bias, self.decoder(text).view(-1, 4, VOCAB)


@cache
def whole_batch() -> dict[str, Tensor]:
    """Groups of two to five that lie on several ranks, and captions of unequal lengths."""
    generator = torch.Generator().manual_seed(2)

    def draw(width: int) -> Tensor:
        return torch.randn(SAMPLES, width, generator=generator)

    labels = torch.randint(1, VOCAB, (SAMPLES, 4), generator=generator)
    lengths = torch.cat([torch.full((20,), 4), torch.randint(0, 4, (SAMPLES - 20,), generator=generator)])
    groups = torch.full((SAMPLES,), -1)
    groups[[0, 35]], groups[[3, 4, 17, 30, 31]], groups[[9, 10]], groups[12] = 7, 0, 2**40, 5
    return {
        "image": draw(6), "text": draw(5), "groups": groups,
        "labels": labels.where(torch.arange(4) < lengths[:, None], 0),
        "teacher_image": F.normalize(draw(9), dim=-1), "teacher_text": F.normalize(draw(9), dim=-1),
    }  # fmt: skip


def run_model(model: nn.Module, loss: Callable[[Towers], Tensor], part: slice, dtype: torch.dtype) -> Tensor:
    batch = {key: value[part] for key, value in whole_batch().items()}
    batch = {key: value.to(dtype) if value.is_floating_point() else value for key, value in batch.items()}
    teacher = batch["teacher_image"], batch["teacher_text"], torch.tensor(15.0, dtype=dtype)
    outputs = model(batch["image"], batch["text"])
    result = loss(Towers(*outputs, batch["groups"], batch["labels"], teacher))
    # Parameters outside the loss get a zero gradient, which DistributedDataParallel asks for. Not with a gradient of 1,
    # which would hide that the incoming gradient is dropped.
    (3 * result + 0 * sum(output.sum() for output in outputs)).backward()
    return result


def gradients(model: nn.Module) -> dict[str, list[float]]:
    return {name: p.grad.flatten().tolist() for name, p in model.named_parameters()}


def all_cases_on_this_rank() -> dict[str, tuple[float, dict[str, list[float]]]]:
    results = {}
    with join_world("cpu") as world:
        share = slice(world.rank * SAMPLES // world.size, (world.rank + 1) * SAMPLES // world.size)
        for name, case in CASES.items():
            model = Model(case.scale)
            wrapped = place(model, [], world, ParallelConfig()).module
            loss = run_model(wrapped, partial(case.ours, ranks=world.size), share, torch.float32)
            results[name] = loss.item(), gradients(model)
    return results


@cache
def answers(size: int) -> list[dict[str, tuple[float, dict[str, list[float]]]]]:
    return run_ranks(size, all_cases_on_this_rank) if size > 1 else [all_cases_on_this_rank()]


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("size", [1, 2, *(pytest.param(size, marks=pytest.mark.slow) for size in (3, 4))])
def test_gradients_are_those_of_the_formula_on_the_whole_batch(size, name):
    case = CASES[name]
    model = Model(case.scale).double()
    wanted = run_model(model, partial(case.dense, ranks=size), slice(None), torch.float64).item()
    for loss, found in (answer[name] for answer in answers(size)):
        assert loss == pytest.approx(wanted, rel=1e-5)
        assert loss == answers(size)[0][name][0]
        used = {key: torch.tensor(value) for key, value in gradients(model).items() if any(value)}
        assert len(used) >= 2
        assert not [key for key, value in found.items() if any(value) and key not in used]
        for key, gradient in used.items():
            assert dense.relative_error(torch.tensor(found[key]), gradient) < 1e-5, key
