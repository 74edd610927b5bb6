import pytest
import torch

from clip_train.losses.distillation import distillation_loss
from tests.support import dense_losses as dense
from tests.support.dense_losses import features, relative_error


def make(dtype: torch.dtype, scale: float, noise: float = 1.0) -> tuple[list[torch.Tensor], tuple[torch.Tensor, ...]]:
    student = *features(29, 24, noise=noise, common=1.5), torch.tensor(scale)
    teacher = *features(29, 40, seed=1, noise=noise, common=1.5), torch.tensor(scale)
    return [t.to(dtype).requires_grad_() for t in student], tuple(t.to(dtype) for t in teacher)


@pytest.mark.parametrize("tile", [1, 8, None])
@pytest.mark.parametrize(
    ("scale", "noise", "temperature"),
    [(20.0, 1.0, 1.0), (20.0, 1.0, 0.5), (20.0, 1.0, 4.0), (50.0, 0.2, 1.0), (100.0, 4.0, 1.0)],
)
def test_loss_and_gradients_are_those_of_the_formula(scale, noise, temperature, tile):
    (inputs, teacher), (doubles, double_teacher) = (make(d, scale, noise) for d in (torch.float32, torch.float64))
    found = distillation_loss(*inputs, *teacher, temperature=temperature, tile=tile)
    wanted = dense.distillation(*doubles, double_teacher, temperature)
    assert found.item() == pytest.approx(wanted.item(), rel=1e-5)
    grads = (torch.autograd.grad(3 * loss, of) for loss, of in ((found, inputs), (wanted, doubles)))
    for one, other in zip(*grads, strict=True):
        assert relative_error(one, other) < 1e-5


def test_the_teacher_gets_no_gradient():
    inputs, teacher = make(torch.float32, 20.0)
    teacher = [tensor.requires_grad_() for tensor in teacher]
    distillation_loss(*inputs, *teacher).backward()
    assert all(tensor.grad is None for tensor in teacher)
    assert all(tensor.grad is not None for tensor in inputs)


def test_a_student_that_is_its_teacher_has_no_gradient():
    inputs, _ = make(torch.float32, 20.0)
    loss = distillation_loss(*inputs, *(tensor.detach() for tensor in inputs), tile=10)
    assert all(gradient.abs().max() < 1e-6 for gradient in torch.autograd.grad(loss, inputs))


def test_autocast_changes_nothing():
    inputs, teacher = make(torch.float32, 20.0)
    plain = torch.autograd.grad(distillation_loss(*inputs, *teacher), inputs)
    with torch.autocast("cpu", torch.bfloat16):
        inside = torch.autograd.grad(distillation_loss(*inputs, *teacher), inputs)
    assert all(torch.equal(one, other) for one, other in zip(inside, plain, strict=True))


def test_a_temperature_that_is_not_positive_is_named():
    inputs, teacher = make(torch.float32, 20.0)
    with pytest.raises(ValueError, match="temperature is 0"):
        distillation_loss(*inputs, *teacher, temperature=0)
