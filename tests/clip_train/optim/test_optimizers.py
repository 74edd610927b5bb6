"""Every optimizer of the table: its keyword arguments, its bits after a resume, and a step of some by hand."""

import copy
import inspect

import pytest
import torch

from clip_train.errors import ClipTrainError
from clip_train.optim import KNOWN, OPTIMIZERS
from clip_train.optim.averages import Ema, evaluation_weights
from clip_train.optim.build import make_optimizer
from clip_train.optim.config import EmaConfig, OptimConfig
from clip_train.optim.guard import update
from clip_train.optim.state import load_optimizer, optimizer_tensors

pytest.importorskip("timm")
pytest.importorskip("schedulefree")

# How the arithmetic is carried out, what the trainer sets itself, and what the library has deprecated.
NOT_OFFERED = {
    "params",
    "lr",
    "weight_decay",
    "maximize",
    "foreach",
    "capturable",
    "differentiable",
    "fused",
    "verbose",
}
NOT_OFFERED |= {"warmup_steps", "adamw_lr", "decoupled", "momentum_dtype", "betas", "eps"}


def config_of(name: str, **options) -> OptimConfig:
    return OptimConfig(name=name, lr=0.01, schedule="constant", **options)


def tiny() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Embedding(16, 8), torch.nn.Linear(8, 24), torch.nn.GELU(), torch.nn.Linear(24, 8)
    )


def train(model: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        ids = torch.randint(16, (12,), generator=torch.Generator().manual_seed(step))
        for group in optimizer.param_groups:
            group["lr"] = 0.01 / (1 + step)
        model(ids).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("name", KNOWN)
def test_the_table_knows_the_keyword_arguments_of_the_classes(name):
    known, parameters = KNOWN[name], set(inspect.signature(OPTIMIZERS.get(name)).parameters)
    assert {*known.options, *known.takes, *known.fixed} <= parameters
    assert parameters - NOT_OFFERED <= set(known.options)
    assert {"betas", "eps"} & parameters <= {*known.options, *known.takes}
    assert not set(known.options) & set(known.takes)


@pytest.mark.parametrize("name", KNOWN)
def test_every_optimizer_resumes_to_the_bit(name):
    whole, broken = tiny(), tiny()
    optimizer = make_optimizer(whole, config_of(name))
    train(whole, optimizer, range(6))
    assert not torch.equal(whole[1].weight, tiny()[1].weight)

    first = make_optimizer(broken, config_of(name))
    train(broken, first, range(3))
    saved = copy.deepcopy(optimizer_tensors(broken, first))
    resumed = tiny()
    resumed.load_state_dict(copy.deepcopy(broken.state_dict()))
    second = make_optimizer(resumed, config_of(name))
    load_optimizer(resumed, second, saved)
    assert all(torch.equal(value, saved[key]) for key, value in optimizer_tensors(resumed, second).items())
    train(resumed, second, range(3, 6))
    for own, other in zip(resumed.parameters(), whole.parameters(), strict=True):
        assert torch.equal(own, other)
    before, after = optimizer_tensors(whole, optimizer), optimizer_tensors(resumed, second)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("name", ["adamw", "sgd", "muon"])
def test_a_step_that_is_not_good_changes_neither_weights_nor_state(name):
    model = tiny()
    optimizer = make_optimizer(model, config_of(name))
    train(model, optimizer, range(2))
    weights, state = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer_tensors(model, optimizer))
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, torch.nan)
    update(optimizer, torch.tensor(False))
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
    assert all(torch.equal(value, state[key]) for key, value in optimizer_tensors(model, optimizer).items())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    update(optimizer, torch.tensor(True))
    assert not torch.equal(model[1].weight, weights["1.weight"])


def test_a_step_of_lion_is_the_sign_of_the_mixed_momentum():
    layer = torch.nn.Linear(2, 2, bias=False)
    start, grads = layer.weight.detach().double(), [torch.tensor([[1.0, -2.0], [3.0, 0.5]]), -torch.ones(2, 2)]
    optimizer = make_optimizer(layer, config_of("lion", betas=(0.9, 0.98), weight_decay=0.1))
    momentum, weight = torch.zeros(2, 2, dtype=torch.float64), start
    for grad in grads:
        layer.weight.grad = grad.clone()
        optimizer.step()
        weight = weight * (1 - 0.01 * 0.1) - 0.01 * (0.9 * momentum + 0.1 * grad).sign()
        momentum = 0.98 * momentum + 0.02 * grad
    torch.testing.assert_close(layer.weight.detach().double(), weight, rtol=1e-6, atol=1e-7)


def test_muon_moves_matrices_along_orthogonal_directions_and_tables_as_adamw_does():
    model, plain = tiny(), tiny()
    start = copy.deepcopy(model.state_dict())
    train(model, make_optimizer(model, config_of("muon", weight_decay=0.0)), range(1))
    train(plain, make_optimizer(plain, config_of("adamw", weight_decay=0.0)), range(1))
    torch.testing.assert_close(model[0].weight, plain[0].weight)
    torch.testing.assert_close(model[1].bias, plain[1].bias)
    singular = torch.linalg.svdvals((model[1].weight.detach() - start["1.weight"]).double())
    assert singular.max() / singular.min() < 1.5  # Adam's would be above 10
    assert float(singular.mean()) == pytest.approx(0.01 * 0.2 * 24**0.5, rel=0.2)


def test_options_reach_the_optimizer():
    assert make_optimizer(tiny(), config_of("muon", options={"ns_steps": 3})).param_groups[0]["ns_steps"] == 3
    betas = make_optimizer(tiny(), config_of("adan", options={"betas": [0.9, 0.8, 0.7]})).param_groups[0]["betas"]
    assert tuple(betas) == (0.9, 0.8, 0.7)


def test_a_value_that_the_optimizer_refuses_is_named():
    with pytest.raises(ClipTrainError, match=r"optim\.name = 'muon' does not accept .*conv_mode = 'folded'"):
        make_optimizer(tiny(), config_of("muon", options={"conv_mode": "folded"}))


def test_any_class_of_any_library_is_an_optimizer():
    group = make_optimizer(tiny(), config_of("torch.optim:NAdam", options={"momentum_decay": 0.5})).param_groups[0]
    assert (group["momentum_decay"], group["betas"], group["lr"]) == (0.5, (0.9, 0.98), 0.01)
    with pytest.raises(ClipTrainError, match=r"optim\.options\.momentum_deca: .* did you mean momentum_decay\?"):
        make_optimizer(tiny(), config_of("torch.optim:NAdam", options={"momentum_deca": 0.5}))


def test_a_state_that_is_no_tensor_is_named():
    model = tiny()
    optimizer = make_optimizer(model, config_of("sgd"))
    optimizer.state[model[0].weight]["factors"] = [torch.eye(2)]
    with pytest.raises(ClipTrainError, match=r"the optimizer keeps a list, factors, for 0\.weight"):
        optimizer_tensors(model, optimizer)


def test_a_schedule_free_optimizer_evaluates_the_average_and_trains_on_with_the_same_bits():
    model, other = tiny(), tiny()
    optimizer = make_optimizer(model, config_of("sgd-schedulefree", options={"momentum": 0.9}, weight_decay=0.0))
    undisturbed = make_optimizer(other, config_of("sgd-schedulefree", options={"momentum": 0.9}, weight_decay=0.0))
    train(model, optimizer, range(3))
    trained = copy.deepcopy(model.state_dict())
    with evaluation_weights(optimizer):
        # The weights of training are y = (1 - β) z + β x, and the average is x.
        z = optimizer.state[model[1].weight]["z"].double()
        average = (trained["1.weight"].double() - 0.1 * z) / 0.9
        torch.testing.assert_close(model[1].weight.double(), average, rtol=1e-5, atol=1e-6)
        assert not torch.equal(model[1].weight, trained["1.weight"])
    assert all(torch.equal(value, trained[key]) for key, value in model.state_dict().items())
    train(model, optimizer, range(3, 5))
    train(other, undisturbed, range(5))
    assert torch.equal(model[1].weight, other[1].weight)


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("warmup", [True, False])
def test_the_average_is_that_of_the_formula_and_resumes_to_the_bit(every, warmup):
    model = tiny()
    model[3].requires_grad_(False)
    config = EmaConfig(decay=0.9, warmup=warmup, every=every)
    ema, optimizer = Ema(model, config), make_optimizer(model, config_of("adamw"))
    wanted = model[1].weight.detach().double()
    resumed = None
    for step in range(1, 13):
        train(model, optimizer, range(step, step + 1))
        ema.update(step)
        if resumed:
            resumed.update(step)
        if step == 7:
            resumed = Ema(model, config)
            resumed.load_state(copy.deepcopy(ema.state()))
        if step % every == 0:
            decay = min(0.9, (1 + step) / (10 + step)) if warmup else 0.9
            wanted = decay**every * wanted + (1 - decay**every) * model[1].weight.detach().double()
    assert set(ema.state()) == {"0.weight", "1.weight", "1.bias"}
    torch.testing.assert_close(ema.state()["1.weight"].double(), wanted, rtol=1e-5, atol=1e-7)
    assert all(torch.equal(value, ema.state()[name]) for name, value in resumed.state().items())
    before = copy.deepcopy(model.state_dict())
    with ema.swapped():
        assert torch.equal(model[1].weight, ema.state()["1.weight"])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_average_of_bf16_weights_is_kept_in_fp32():
    model = torch.nn.Linear(4, 4).bfloat16()
    ema = Ema(model, EmaConfig(decay=0.999, warmup=False))
    with torch.no_grad():
        model.weight.add_(1.0)
    ema.update(1)
    assert ema.state()["weight"].dtype == torch.float32
    moved = (model.weight.detach().float() - ema.state()["weight"]).mean()
    assert moved == pytest.approx(0.999, rel=1e-2)  # bf16 would have lost the step
