"""Norms and clipping against float64 arithmetic, and the guard's judgement."""

import math
from statistics import median_low

import pytest
import torch

from clip_models import create_model
from clip_train.errors import ClipTrainError
from clip_train.optim.clip import Clip, tower_of
from clip_train.optim.config import OptimConfig, SpikeConfig
from clip_train.optim.guard import Guard

CPU = torch.device("cpu")
# torch sums the squares in float32; over the 3 million of a token embedding that costs 5e-5, measured.


@pytest.fixture
def model() -> torch.nn.Module:
    """A model with gradients whose norm is about 1 % of the number of parameters' root."""
    model = create_model("ViT-Ti-4-24", seed=0)
    draw = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=draw) * 0.01
    return model


def norm_of(model: torch.nn.Module, *towers: str) -> float:
    """The norm of the gradients of towers, in float64."""
    grads = [p.grad.double() for name, p in model.named_parameters() if tower_of(model, name) in towers]
    return math.sqrt(sum(float(grad.square().sum()) for grad in grads))


ALL = ("image", "text", "other")


def test_every_parameter_belongs_to_its_tower(model):
    found = {name: tower_of(model, name) for name, _ in model.named_parameters()}
    assert {name for name, tower in found.items() if tower == "other"} == {"logit_scale"}
    assert all((tower == "image") == name.startswith("visual.") for name, tower in found.items())
    assert tower_of(torch.nn.Linear(2, 2), "weight") == "other"


def test_the_norms_are_those_of_float64(model):
    norms = Clip(model, OptimConfig()).norms()
    assert float(norms["grad_norm"]) == pytest.approx(norm_of(model, *ALL), rel=1e-4)
    assert set(norms) == {"grad_norm", *(f"grad_norm_{tower}" for tower in ALL)}
    for tower in ALL:
        assert float(norms[f"grad_norm_{tower}"]) == pytest.approx(norm_of(model, tower), rel=1e-4)


@pytest.mark.parametrize("limit", [0.5, 1e6])
def test_the_global_norm_is_clipped(model, limit):
    before = norm_of(model, *ALL)
    clip = Clip(model, OptimConfig(grad_clip_norm=limit))
    clip.apply(clip.norms())
    assert norm_of(model, *ALL) == pytest.approx(min(before, limit), rel=1e-4)


def test_each_tower_is_clipped_to_its_own_norm(model):
    before = {tower: norm_of(model, tower) for tower in ALL}
    clip = Clip(model, OptimConfig(grad_clip={"image": 0.5, "text": 1e6}))
    clip.apply(clip.norms())
    assert norm_of(model, "image") == pytest.approx(0.5, rel=1e-4) != before["image"]
    assert {tower: norm_of(model, tower) for tower in ("text", "other")} == {
        tower: before[tower] for tower in ("text", "other")
    }


def test_adaptive_clipping_bounds_the_ratio_of_each_unit():
    pytest.importorskip("timm")
    layer = torch.nn.Linear(3, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[3.0, 0.0, 4.0], [0.6, 0.8, 0.0]]))  # units of norm 5 and 1
    layer.weight.grad = torch.tensor([[0.3, 0.4, 0.0], [0.3, 0.4, 0.0]])
    clip = Clip(layer, OptimConfig(agc=0.1))
    clip.apply(clip.norms())
    # 0.1 × 5 allows the norm 0.5 of the first unit; 0.1 × 1 does not allow that of the second.
    torch.testing.assert_close(layer.weight.grad, torch.tensor([[0.3, 0.4, 0.0], [0.06, 0.08, 0.0]]))


def test_clipping_and_judging_do_not_read_a_value_from_the_device(model, monkeypatch):
    def refuse(*_: object) -> None:
        raise AssertionError("waits for the device")

    clip = Clip(model, OptimConfig(grad_clip={"image": 0.5, "text": 0.5}))
    guard = Guard(SpikeConfig(action="skip", window=2), CPU)
    for name in ("item", "tolist", "__float__", "__bool__", "__int__"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    norms = clip.norms()
    guard.judge(torch.tensor(1.0), norms["grad_norm"])
    clip.apply(norms)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("action", ["off", "skip"])
def test_what_is_not_finite_is_never_good_and_always_ends_the_run(bad, action):
    for loss, norm in ((bad, 1.0), (1.0, bad)):
        guard = Guard(SpikeConfig(action=action), CPU)
        assert guard.judge(torch.tensor(1.0), torch.tensor(1.0))
        assert not guard.judge(torch.tensor(loss), torch.tensor(norm))
        with pytest.raises(ClipTrainError, match=r"step 7: the loss is .* Lower optim\.lr \(now 0\.1\)"):
            guard.settle(7, loss, norm, 0.1, {name: float(value) for name, value in guard.verdict().items()})
        assert not guard.judge(torch.tensor(1.0), torch.tensor(1.0))  # nothing after it is good


def test_the_judgement_is_that_of_the_running_median():
    window, config = 8, SpikeConfig(action="skip", loss=1.5, norm=3.0, window=8, most=1000)
    guard, kept = Guard(config, CPU), []
    draw = torch.Generator().manual_seed(1)
    judged = []
    for _ in range(300):
        loss, norm = torch.rand(2, generator=draw).mul(3).exp().tolist()
        good = bool(guard.judge(torch.tensor(loss), torch.tensor(norm)))
        last = kept[-window:]
        limits = [
            factor * median_low(column) for factor, column in zip((1.5, 3.0), zip(*last, strict=True), strict=False)
        ]
        wanted = len(last) < window or (loss <= limits[0] and norm <= limits[1])
        assert good == wanted
        judged.append(good)
        if good:
            kept.append((loss, norm))
    assert 20 < judged.count(False) < 280


def test_a_factor_of_zero_ignores_the_quantity():
    guard = Guard(SpikeConfig(action="skip", loss=0, norm=2.0, window=2), CPU)
    steps = [(1.0, 1.0), (1.0, 1.0), (1e9, 1.0), (1.0, 2.1)]
    assert [bool(guard.judge(torch.tensor(a), torch.tensor(b))) for a, b in steps] == [True, True, True, False]


def test_the_guard_resumes_to_the_bit():
    config = SpikeConfig(action="skip", window=3)
    one, two = Guard(config, CPU), Guard(config, CPU)
    for value in (1.0, 1.1, 1.2, 9.0):
        one.judge(torch.tensor(value), torch.tensor(value))
    two.load_state({name: tensor.clone() for name, tensor in one.state().items()})
    for value in (8.0, 1.3, 2.3, 2.7):
        assert bool(one.judge(torch.tensor(value), torch.tensor(1.0))) == bool(
            two.judge(torch.tensor(value), torch.tensor(1.0))
        )
    assert all(torch.equal(two.state()[name], tensor) for name, tensor in one.state().items())
