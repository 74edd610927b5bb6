"""The estimate of the loss over all samples, its gradients, and the table that holds the state."""

import math

import pytest
import torch

from clip_train.losses.global_contrastive import NEVER, global_contrastive_loss
from clip_train.losses.table import SampleTable
from clip_train.parallel import World, join_world
from tests.support import dense_losses as dense
from tests.support.distributed import run_ranks

HERE = World(0, 1, torch.device("cpu"))
OPTIONS = {"gamma": 0.3, "eps": 1e-3, "rho": 2.0}


def state(samples: int) -> torch.Tensor:
    u = torch.rand(2, samples, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    u[0, 3] = u[1, 5] = 0
    return u


@pytest.mark.parametrize("tile", [None, 4])
def test_a_global_temperature_has_the_gradient_of_the_formula(tile):
    leaves = [*dense.features(9), torch.tensor(20.0)]
    double = [leaf.double().requires_grad_() for leaf in leaves]
    surrogate, value, u = dense.global_contrastive(
        *double[:2], double[2].reciprocal().expand(2, 9), state(9), **OPTIONS
    )
    single = [leaf.clone().requires_grad_() for leaf in leaves]
    found = global_contrastive_loss(*single, state(9).float().log(), tile=tile, **OPTIONS)
    assert found.loss.item() == pytest.approx(value.item(), rel=1e-5)
    torch.testing.assert_close(found.log_u_2N.double(), u.log(), rtol=1e-6, atol=1e-6)
    assert found.slope_2N is None
    for mine, wanted in zip(
        torch.autograd.grad(3 * found.loss, single), torch.autograd.grad(surrogate, double), strict=True
    ):
        assert dense.relative_error(mine / 3, wanted) < 1e-5


@pytest.mark.parametrize("tile", [None, 4])
def test_individual_temperatures_have_the_gradients_of_their_own_terms(tile):
    leaves = dense.features(9)
    tau = torch.rand(2, 9, generator=torch.Generator().manual_seed(5)) * 0.1 + 0.03
    double = [leaf.double().requires_grad_() for leaf in (*leaves, tau)]
    surrogate, value, _ = dense.global_contrastive(*double, state(9), **OPTIONS)
    single = [leaf.clone().requires_grad_() for leaf in leaves]
    found = global_contrastive_loss(*single, torch.tensor(1.0), state(9).float().log(), tau, tile=tile, **OPTIONS)
    assert found.loss.item() == pytest.approx(value.item(), rel=1e-5)
    *wanted, slopes = torch.autograd.grad(surrogate, double)
    for mine, theirs in zip(torch.autograd.grad(found.loss, single), wanted, strict=True):
        assert dense.relative_error(mine, theirs) < 1e-5
    assert dense.relative_error(found.slope_2N, slopes * 2 * 9) < 1e-5  # of each term, not of their mean


def test_the_lowest_temperatures_do_not_overflow():
    image, text = (each.requires_grad_() for each in dense.features(8, noise=30.0))
    scale = torch.tensor(400.0, requires_grad=True)
    found = global_contrastive_loss(image, text, scale, torch.full((2, 8), NEVER), gamma=0.5)
    found = global_contrastive_loss(image, text, scale, found.log_u_2N, gamma=0.5)
    assert found.log_u_2N.max() > 88  # exp of it is not a float32
    found.loss.backward()
    assert all(leaf.grad.isfinite().all() and leaf.grad.any() for leaf in (image, text, scale))


def test_the_normalisers_converge_to_those_of_all_samples():
    """Of fixed features, in batches of 4 of 32: the error falls far below that of one batch."""
    samples, size, epochs = 32, 4, 60
    image, text = dense.features(samples, noise=1.0)
    scale = torch.tensor(5.0)
    whole = global_contrastive_loss(image, text, scale, torch.full((2, samples), NEVER), gamma=1.0).log_u_2N
    table = SampleTable(HERE, samples, {"image": NEVER, "text": NEVER})
    generator, errors = torch.Generator().manual_seed(0), []
    for epoch in range(epochs):
        for rows in torch.randperm(samples, generator=generator).split(size):
            found = global_contrastive_loss(
                image[rows], text[rows], scale, table.read(rows), gamma=max(0.05, 1 / (epoch + 1))
            )
            table.write(rows, found.log_u_2N)
        errors.append(float((torch.stack([*table.state().values()]) - whole).exp().sub(1).abs().mean()))
    assert errors[0] > 0.3
    assert errors[-1] < errors[0] / 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma": 0.0}, "gamma is 0.0"),
        ({"gamma": 1.5}, "gamma is 1.5"),
        ({"gamma": 0.5, "eps": 0.0}, "eps 0.0"),
        ({"gamma": 0.5, "rho": -1.0}, "rho -1.0"),
    ],
)
def test_bad_values_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        global_contrastive_loss(*dense.features(4), torch.tensor(5.0), torch.full((2, 4), NEVER), **options)


def test_a_batch_of_one_pair_is_refused():
    with pytest.raises(ValueError, match="one pair"):
        global_contrastive_loss(*dense.features(1), torch.tensor(5.0), torch.full((2, 1), NEVER), gamma=1.0)


def use_table(samples: int) -> tuple[list[list[float]], list[float], int]:
    """Reads and writes on this rank; returns what is read, a whole column, and the rows that the rank holds."""
    with join_world("cpu") as world:
        table = SampleTable(world, samples, {"a": NEVER, "b": 2.0})
        ordinals = torch.tensor([6, 0, 3, 6, 1])
        values = torch.stack([torch.arange(5.0), 10 * torch.arange(5.0)])
        values[1, 4] = math.nan  # leaves sample 1 as it is
        table.write(ordinals, values)
        found = table.read(torch.tensor([0, 1, 2, 3, 6]))
        state = table.state()
        rows = state["b"]
        held = len(rows.to_local() if world.size > 1 else rows)
        again = SampleTable(world, samples, {"a": 0.0, "b": 0.0})
        again.load_state(state)
        assert torch.equal(again.read(torch.arange(samples)), table.read(torch.arange(samples)))
        return found.tolist(), (rows.full_tensor() if world.size > 1 else rows).tolist(), held


@pytest.mark.parametrize("size", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_a_table_is_shared_out_over_the_ranks(size):
    answers = run_ranks(size, use_table, 7) if size > 1 else [use_table(7)]
    for found, whole, _ in answers:
        assert found == [[1.0, NEVER, NEVER, 2.0, 0.0], [10.0, 2.0, 2.0, 20.0, 0.0]]  # of 6 the first place counts
        assert whole == [10.0, 2.0, 2.0, 20.0, 2.0, 2.0, 0.0]
    assert [held for _, _, held in answers] == ([7] if size == 1 else [3, 3, 1])
