import pytest
import torch

from clip_train.losses import caption as module
from clip_train.losses.caption import caption_loss
from tests.support import dense_losses as dense
from tests.support.dense_losses import relative_error


def batch(captions: int = 9, tokens: int = 6, vocab: int = 50) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(1, vocab, (captions, tokens), generator=generator)
    labels[2, 3:] = labels[5] = labels[:, -1] = 0
    return 20 * torch.randn(captions, tokens, vocab, generator=generator), labels


@pytest.mark.parametrize("elements", [1, 700, 2**22])
@pytest.mark.parametrize("ignore", [0, -100])
def test_loss_and_gradient_are_those_of_the_formula_for_every_chunk(elements, ignore, monkeypatch):
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", elements)
    logits, labels = batch()
    labels = labels.where(labels != 0, ignore)
    single, double = logits.clone().requires_grad_(), logits.double().requires_grad_()
    found, wanted = caption_loss(single, labels, ignore=ignore), dense.caption(double, labels, ignore)
    assert found.item() == pytest.approx(wanted.item(), rel=1e-6)
    (one,), (other,) = torch.autograd.grad(3 * found, single), torch.autograd.grad(3 * wanted, double)
    assert relative_error(one, other) < 1e-5


def test_bf16_logits_give_a_float32_loss_and_a_bf16_gradient():
    logits, labels = batch()
    logits = logits.bfloat16().requires_grad_()
    loss = caption_loss(logits, labels)
    loss.backward()
    double = logits.detach().double().requires_grad_()
    dense.caption(double, labels, 0).backward()
    assert loss.dtype == torch.float32
    assert logits.grad.dtype == torch.bfloat16
    assert relative_error(logits.grad, double.grad) < 4e-3  # half a unit in the last place of bf16


def test_positions_that_do_not_count_get_no_gradient_even_if_they_are_not_finite():
    logits, labels = batch()
    logits[:, -1] = torch.nan
    logits.requires_grad_()
    loss = caption_loss(logits, labels)
    loss.backward()
    assert loss.isfinite()
    assert logits.grad[labels != 0].any(-1).all()
    assert not logits.grad[labels == 0].any()


def test_captions_without_a_token_give_zero():
    logits, labels = batch()
    logits.requires_grad_()
    loss = caption_loss(logits, torch.zeros_like(labels))
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()


def test_no_second_float32_copy_is_made(monkeypatch):
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", 2**16)
    logits = torch.randn(64, 16, 1024, dtype=torch.bfloat16, requires_grad=True)
    labels = torch.randint(1, 1024, (64, 16))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        caption_loss(logits, labels).backward()
    largest = sorted(event.self_cpu_memory_usage for event in profile.events())
    assert largest[-1] <= logits.numel() * 2  # the gradient, in bf16
    assert largest[-2] < logits.numel() // 2


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [((9, 5), {}, r"labels \[9, 5\]"), ((9, 6), {"mean": "sum"}, "mean is 'sum'")],
)
def test_what_does_not_fit_is_named(labels, options, message):
    with pytest.raises(ValueError, match=message):
        caption_loss(batch()[0], torch.ones(labels, dtype=torch.int64), **options)
