import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from clip_train.losses.contrastive import contrastive_loss
from clip_train.parallel import join_world
from tests.support.distributed import run_ranks


def features(pairs: int, seed: int = 0, channels: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    image, text = torch.randn(2, pairs, channels, generator=generator)
    return F.normalize(image + text, dim=-1), F.normalize(text, dim=-1)


def plain_loss(image: torch.Tensor, text: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    similarities = scale * image @ text.T
    pairs = torch.arange(len(image))
    return (F.cross_entropy(similarities, pairs) + F.cross_entropy(similarities.T, pairs)) / 2


def relative_error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


@pytest.mark.parametrize("tile", [1, 7, 24, 1000])
def test_loss_and_gradients_are_those_of_the_plain_formula_for_every_tile(tile):
    inputs = [t.requires_grad_() for t in (*features(24), torch.tensor(20.0))]
    doubles = [t.detach().double().requires_grad_() for t in inputs]
    found, wanted = contrastive_loss(*inputs, tile=tile), plain_loss(*doubles)
    assert found.item() == pytest.approx(wanted.item(), abs=2e-6)  # what float32 leaves of cosines times 20
    # Not with a gradient of 1, which would hide that the incoming gradient is dropped.
    found_grads, wanted_grads = (torch.autograd.grad(3 * loss, x) for loss, x in ((found, inputs), (wanted, doubles)))
    for one, other in zip(found_grads, wanted_grads, strict=True):
        assert relative_error(one, other) < 1e-5


def test_similarities_are_float32_under_autocast():
    image, text = features(64)
    scale = torch.tensor(100.0)
    with torch.autocast("cpu", torch.bfloat16):
        inside = contrastive_loss(image, text, scale)
    assert inside.dtype == torch.float32
    assert inside.item() == contrastive_loss(image, text, scale).item()


def test_large_scales_do_not_overflow():
    image, text = features(8)
    loss = contrastive_loss(-image, text, torch.tensor(1e4))
    assert math.isfinite(loss.item())


@pytest.mark.slow
def test_memory_does_not_grow_with_the_square_of_the_batch():
    image, text = (t.requires_grad_() for t in features(8192, channels=4))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        contrastive_loss(image, text, torch.tensor(10.0), tile=64).backward()
    largest = max(event.cpu_memory_usage for event in profile.events())
    assert largest < 8192 * 8192 * 4 / 16


class Towers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.image, self.text = nn.Linear(6, 16), nn.Linear(5, 16)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(20)))

    def forward(self, image: torch.Tensor, text: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.image(image), self.text(text), self.logit_scale.exp()


def gradients_of_this_rank(pairs: int) -> tuple[float, dict[str, list[float]]]:
    """Loss and parameter gradients after DDP's averaging, each rank holding its part of the batch."""
    generator = torch.Generator().manual_seed(2)
    whole = torch.randn(pairs, 6, generator=generator), torch.randn(pairs, 5, generator=generator)
    with join_world("cpu") as world:
        model = Towers()
        share = slice(world.rank * pairs // world.size, (world.rank + 1) * pairs // world.size)
        towers = world.wrap(model)
        image, text, scale = towers(*(part[share] for part in whole))
        loss = contrastive_loss(F.normalize(image, dim=-1), F.normalize(text, dim=-1), scale, ranks=world.size, tile=5)
        loss.backward()
    return loss.item(), {name: p.grad.flatten().tolist() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3])
def test_ranks_have_the_loss_and_the_gradient_of_one_process(size):
    wanted_loss, wanted = gradients_of_this_rank(24)
    answers = run_ranks(size, gradients_of_this_rank, 24)
    assert len(wanted) == 5
    for loss, found in answers:
        assert loss == pytest.approx(wanted_loss, abs=2e-6)
        assert loss == answers[0][0]
        for name, gradient in wanted.items():
            assert relative_error(torch.tensor(found[name]), torch.tensor(gradient)) < 1e-5, name
