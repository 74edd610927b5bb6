"""Float32 products from shorter numbers: their values, and the gradients of every loss with them."""

import pytest
import torch

from clip_train.losses import products, selection
from clip_train.losses.contrastive import contrastive_loss
from clip_train.losses.distillation import distillation_loss
from clip_train.losses.products import PRODUCTS, computed_by, mm
from clip_train.losses.selection import fastest, gradient_error
from clip_train.losses.sigmoid import sigmoid_loss
from tests.support import dense_losses as dense

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "least", "most"), [("torch", 0, 5e-7), ("tf32x3", 1e-8, 5e-7), ("bf16x3", 1e-6, 1e-5)]
)
@pytest.mark.parametrize("transposed", [False, True])
def test_a_product_has_the_digits_of_its_numbers(name, least, most, transposed):
    torch.manual_seed(0)
    a, b = (torch.randn(33, 65).T, torch.randn(17, 33).T) if transposed else (torch.randn(65, 33), torch.randn(33, 17))
    with computed_by(name):
        found = mm(a, b)
    assert found.dtype == torch.float32
    assert least <= dense.relative_error(found, a.double() @ b.double()) < most


def test_only_float32_is_computed_otherwise():
    a, b = torch.randn(3, 4, dtype=torch.bfloat16), torch.randn(4, 5, dtype=torch.bfloat16)
    with computed_by("tf32x3"):
        assert torch.equal(mm(a, b), a @ b)


@pytest.mark.parametrize(("name", "most"), [("torch", 2e-6), ("tf32x3", 5e-6), ("bf16x3", 2e-5)])
def test_the_gradient_error_tells_the_products_apart(name, most):
    assert most / 20 < gradient_error(name, 64, CPU) < most


SCALE, BIAS = torch.tensor(20.0), torch.tensor(-5.0)
TEACHER = (*dense.features(24, channels=8, seed=1), torch.tensor(10.0))
LOSSES = {
    "contrastive": (contrastive_loss, dense.contrastive, (SCALE,)),
    "sigmoid": (sigmoid_loss, dense.sigmoid, (SCALE, BIAS)),
    "distillation": (distillation_loss, lambda x, y, scale, *t: dense.distillation(x, y, scale, t), (SCALE, *TEACHER)),
}


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("case", LOSSES)
def test_the_losses_are_computed_with_it_forward_and_backward(case, name):
    loss, formula, others = LOSSES[case]
    leaves = [x.requires_grad_() for x in dense.features(24, channels=32)]
    exact = [x.detach().double().requires_grad_() for x in leaves]
    wanted = torch.autograd.grad(formula(*exact, *(each.double() for each in others)), exact)
    with computed_by(name):
        found = torch.autograd.grad(loss(*leaves, *others), leaves)
    errors = [dense.relative_error(mine, right) for mine, right in zip(found, wanted, strict=True)]
    assert max(errors) < 1e-5
    assert (min(errors) > 1e-6) == (name == "bf16x3")


@pytest.mark.parametrize(
    ("seconds", "errors", "chosen"),
    [
        ((3.0, 2.0, 1.0), (1e-7, 1e-6, 9e-6), "bf16x3"),
        ((3.0, 2.0, 1.0), (1e-7, 1e-6, 2e-5), "tf32x3"),
        ((3.0, 2.0, 1.0), (1e-7, 3e-5, 2e-5), "torch"),
        ((1.0, 2.0, 3.0), (1e-7, 1e-6, 9e-6), "torch"),
    ],
)
def test_the_fastest_product_with_a_right_gradient_is_chosen(monkeypatch, seconds, errors, chosen):
    monkeypatch.setattr(selection, "_seconds", lambda name, *_: dict(zip(PRODUCTS, seconds, strict=True))[name])
    monkeypatch.setattr(selection, "gradient_error", lambda name, *_: dict(zip(PRODUCTS, errors, strict=True))[name])
    assert fastest(64, CPU) == chosen


@pytest.mark.slow
def test_the_measurement_moves_no_generator_and_leaves_the_product_as_it_was():
    before = torch.get_rng_state()
    assert fastest(8, CPU) in PRODUCTS
    assert torch.equal(torch.get_rng_state(), before)
    assert products._product is torch.mm


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", PRODUCTS)
def test_cuda_has_the_errors_of_the_cpu(name):
    here = gradient_error(name, 512, CPU)
    assert here / 3 < gradient_error(name, 512, torch.device("cuda")) < here * 3
