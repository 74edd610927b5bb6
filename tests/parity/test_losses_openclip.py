"""The losses against OpenCLIP's on one process: values and gradients, theirs in float64, and their bf16 arithmetic."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clip_train.losses.caption import caption_loss
from clip_train.losses.contrastive import contrastive_loss
from clip_train.losses.distillation import distillation_loss
from clip_train.losses.sigmoid import sigmoid_loss
from tests.support.dense_losses import features, relative_error

loss_module = pytest.importorskip("open_clip.loss")
pytestmark = pytest.mark.parity

SCALE, BIAS = torch.tensor(30.0), torch.tensor(-10.0)
TEACHER = *features(50, 48, seed=1), torch.tensor(60.0)


def caption_openclip(logits: Tensor, labels: Tensor) -> Tensor:
    pair = features(4)
    loss = loss_module.CoCaLoss(caption_loss_weight=1.0, clip_loss_weight=0.0)
    return loss(*pair, logits, labels, SCALE)[1]


def caption_batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(0, 30, (8, 5), generator=generator)
    return 5 * torch.randn(8, 5, 30, generator=generator), labels


PAIR = features(50, 32, noise=2.0)
LOSSES = {
    "contrastive": ((*PAIR, SCALE), contrastive_loss, loss_module.ClipLoss()),
    "sigmoid": ((*PAIR, SCALE, BIAS), sigmoid_loss, loss_module.SigLipLoss()),
    "sigmoid, chunks": (
        (*PAIR, SCALE, BIAS),
        lambda *inputs: sigmoid_loss(*inputs, chunk=16),
        loss_module.SigLipLoss(),
    ),
    "distillation": (
        (*PAIR, SCALE),
        lambda *inputs: distillation_loss(*inputs, *TEACHER),
        lambda *inputs: loss_module.DistillClipLoss()(*inputs, *(t.to(inputs[0].dtype) for t in TEACHER))[1],
    ),
}


def gradients(loss, tensors, dtype: torch.dtype) -> tuple[Tensor, tuple[Tensor, ...]]:
    inputs = [tensor.to(dtype).requires_grad_() for tensor in tensors]
    value = loss(*inputs)
    return value, torch.autograd.grad(3 * value, inputs)


@pytest.mark.parametrize("name", LOSSES)
def test_values_and_gradients_are_openclips(name):
    tensors, ours, theirs = LOSSES[name]
    found, found_gradients = gradients(ours, tensors, torch.float32)
    wanted, wanted_gradients = gradients(theirs, tensors, torch.float64)
    assert found.item() == pytest.approx(wanted.item(), rel=1e-6)
    for one, other in zip(found_gradients, wanted_gradients, strict=True):
        assert relative_error(one, other) < 1e-5


def test_caption_loss_and_gradient_are_cocas():
    logits, labels = caption_batch()
    found, (gradient,) = gradients(lambda x: caption_loss(x, labels, mean="rank"), [logits], torch.float32)
    wanted, (other,) = gradients(lambda x: caption_openclip(x, labels), [logits], torch.float64)
    assert found.item() == pytest.approx(wanted.item(), rel=1e-6)
    assert relative_error(gradient, other) < 1e-5


def test_bf16_logits_are_as_far_from_the_truth_as_openclips_under_autocast():
    image, text = (F.normalize(part, dim=-1) for part in features(512, 128, noise=2.0))
    tensors = image, text, torch.tensor(40.0)

    def under_autocast(*inputs: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return loss_module.ClipLoss()(*inputs)

    _, exact = gradients(loss_module.ClipLoss(), tensors, torch.float64)
    _, ours = gradients(lambda *inputs: contrastive_loss(*inputs, logits="bf16"), tensors, torch.float32)
    _, theirs = gradients(under_autocast, tensors, torch.float32)
    for one, other, truth in list(zip(ours, theirs, exact, strict=True))[:2]:
        assert 1e-4 < relative_error(one, truth) < 1.5 * relative_error(other, truth)
