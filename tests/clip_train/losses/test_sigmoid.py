import pytest
import torch

from clip_train.losses import sigmoid as module
from clip_train.losses.sigmoid import sigmoid_loss
from tests.support import dense_losses as dense
from tests.support.dense_losses import features, relative_error


def leaves(dtype: torch.dtype, samples: int, scale: float, bias: float) -> list[torch.Tensor]:
    tensors = *features(samples, 24), torch.tensor(scale), torch.tensor(bias)
    return [tensor.detach().to(dtype).requires_grad_() for tensor in tensors]


@pytest.mark.parametrize("chunk", [None, 1, 7, 100])
@pytest.mark.parametrize(("scale", "bias"), [(10.0, -10.0), (1.0, 0.0), (100.0, -30.0), (100.0, 20.0)])
def test_loss_and_gradients_are_those_of_the_formula(scale, bias, chunk):
    inputs, doubles = (leaves(dtype, 33, scale, bias) for dtype in (torch.float32, torch.float64))
    found, wanted = sigmoid_loss(*inputs, chunk=chunk), dense.sigmoid(*doubles)
    assert found.item() == pytest.approx(wanted.item(), rel=1e-5)
    grads = (torch.autograd.grad(3 * loss, of) for loss, of in ((found, inputs), (wanted, doubles)))
    for one, other in zip(*grads, strict=True):
        assert relative_error(one, other) < 1e-5


def test_without_gradients_no_gradient_is_computed(monkeypatch):
    inputs = leaves(torch.float32, 9, 10.0, -5.0)
    wanted = sigmoid_loss(*inputs)
    monkeypatch.setattr(module.torch, "mm", None)
    with torch.no_grad():
        assert sigmoid_loss(*inputs).item() == wanted.item()
    assert sigmoid_loss(*(tensor.detach() for tensor in inputs)).item() == wanted.item()


def test_autocast_changes_nothing():
    inputs = leaves(torch.float32, 40, 20.0, -5.0)
    plain = torch.autograd.grad(sigmoid_loss(*inputs), inputs)
    with torch.autocast("cpu", torch.bfloat16):
        loss = sigmoid_loss(*inputs)
        inside = torch.autograd.grad(loss, inputs)
    assert loss.dtype == torch.float32
    assert all(torch.equal(one, other) for one, other in zip(inside, plain, strict=True))


def test_an_exchange_that_is_none_is_named():
    with pytest.raises(ValueError, match="exchange is 'bidir': choose ring or gather"):
        sigmoid_loss(*leaves(torch.float32, 4, 1.0, 0.0), exchange="bidir")
