import math

import pytest
import torch

from clip_train.losses.contrastive import contrastive_loss
from tests.support import dense_losses as dense
from tests.support.dense_losses import features, relative_error


@pytest.mark.parametrize("tile", [1, 7, 24, 1000])
def test_loss_and_gradients_are_those_of_the_plain_formula_for_every_tile(tile):
    inputs = [t.requires_grad_() for t in (*features(24), torch.tensor(20.0))]
    doubles = [t.detach().double().requires_grad_() for t in inputs]
    found, wanted = contrastive_loss(*inputs, tile=tile), dense.contrastive(*doubles)
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


def gradients(loss: torch.Tensor, inputs: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(3 * loss, inputs)


def leaves(*tensors: torch.Tensor, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    return [tensor.detach().to(dtype).requires_grad_() for tensor in tensors]


@pytest.mark.parametrize("noise", [0.1, 0.5, 1.0, 4.0])
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"groups": torch.arange(31) // 2}], ids=str)
def test_gradients_keep_their_digits_at_scale_100_from_confident_to_random(options, noise):
    # With little noise the softmax of the own pair is one but for a small rest, which is all of the gradient.
    tensors = *features(31, 64, noise=noise, common=1.5), torch.tensor(100.0)
    inputs, doubles = leaves(*tensors), leaves(*tensors, dtype=torch.float64)
    found, wanted = contrastive_loss(*inputs, tile=8, **options), dense.contrastive(*doubles, **options)
    assert found.item() == pytest.approx(wanted.item(), rel=1e-5)
    for one, other in zip(gradients(found, inputs), gradients(wanted, doubles), strict=True):
        assert relative_error(one, other) < 1e-5


def test_large_features_keep_their_gradient():
    tensors = *(1000 * part for part in features(30)), torch.tensor(1e-5)
    inputs, doubles = leaves(*tensors), leaves(*tensors, dtype=torch.float64)
    pairs = contrastive_loss(*inputs, tile=7), dense.contrastive(*doubles)
    for one, other in zip(gradients(pairs[0], inputs), gradients(pairs[1], doubles), strict=True):
        assert relative_error(one, other) < 1e-5


def test_one_sample_has_no_loss_and_no_gradient():
    inputs = leaves(*features(1), torch.tensor(100.0))
    loss = contrastive_loss(*inputs)
    assert loss.item() == 0
    assert not any(gradient.any() for gradient in gradients(loss, inputs))


def test_groups_of_minus_one_stand_alone():
    image, text = features(12)
    scale = torch.tensor(20.0)
    alone = contrastive_loss(image, text, scale, groups=torch.full((12,), -1))
    assert alone.item() == contrastive_loss(image, text, scale).item()
    together = contrastive_loss(image, text, scale, groups=torch.zeros(12, dtype=torch.int64))
    assert together.item() != alone.item()


@pytest.mark.parametrize("logits", ["fp32", "bf16"])
def test_autocast_changes_nothing_forward_or_backward(logits):
    inputs = leaves(*features(40), torch.tensor(50.0))
    plain = gradients(contrastive_loss(*inputs, logits=logits), inputs)
    with torch.autocast("cpu", torch.bfloat16):
        inside = gradients(contrastive_loss(*inputs, logits=logits), inputs)
    for one, other in zip(inside, plain, strict=True):
        assert torch.equal(one, other)


def test_bf16_logits_are_right_to_about_a_percent():
    tensors = *features(200, 64, noise=4), torch.tensor(30.0)
    inputs, doubles = leaves(*tensors), leaves(*tensors, dtype=torch.float64)
    found, wanted = contrastive_loss(*inputs, logits="bf16"), dense.contrastive(*doubles)
    assert found.item() == pytest.approx(wanted.item(), rel=5e-3)
    for one, other in zip(gradients(found, inputs), gradients(wanted, doubles), strict=True):
        assert one.dtype == torch.float32
        assert 1e-5 < relative_error(one, other) < 2e-2


@pytest.mark.parametrize(("option", "value"), [("label_smoothing", 1.5), ("logits", "fp16")])
def test_values_that_are_none_are_named(option, value):
    with pytest.raises(ValueError, match=f"{option} is '?{value}"):
        contrastive_loss(*features(4), torch.tensor(1.0), **{option: value})
