"""A text tower on a CPU computes the tokens up to the pooled one of each caption, and no others."""

import pytest
import torch

from clip_models import create_model
from clip_models.towers.text import clip as tower
from tests.support.towers import tiny_spec


@pytest.fixture
def model():
    torch.manual_seed(0)
    return create_model(tiny_spec())


def captions(model, *lengths):
    text = torch.zeros(len(lengths), model.context_length, dtype=torch.int64)
    for row, length in enumerate(lengths):
        text[row, :length] = torch.randint(1, model.vocab_size - 2, (length,))
        text[row, length - 1] = model.vocab_size - 1
    return text


def rows_of_first_block(model, text):
    seen = []
    handle = model.transformer.resblocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0].shape))
    model.encode_text(text)
    handle.remove()
    return seen[0]


def features_and_gradients(model, text):
    model.zero_grad()
    features = model.encode_text(text)
    (features * torch.linspace(-1, 1, features.numel()).view_as(features)).sum().backward()
    return features.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("recompute", [False, True])
def test_features_and_gradients_are_those_of_the_padded_batch(model, monkeypatch, recompute):
    text = captions(model, 3, 2, 8, 4, 2)
    model.set_grad_checkpointing(recompute)
    packed, packed_grads = features_and_gradients(model, text)
    monkeypatch.setattr(tower, "PACKED_SHARE", 0)
    padded, padded_grads = features_and_gradients(model, text)
    torch.testing.assert_close(packed, padded, rtol=1e-5, atol=1e-6)
    assert packed_grads.keys() == padded_grads.keys()
    for name, gradient in padded_grads.items():
        assert (packed_grads[name] - gradient).norm() <= 1e-5 * gradient.norm(), name


def test_only_tokens_that_decide_the_features_are_computed(model):
    width = model.transformer.resblocks[0].ln_1.weight.shape[0]
    assert rows_of_first_block(model, captions(model, 3, 2, 8, 4, 2)) == (19, width)


def test_a_batch_of_equal_lengths_stays_padded(model):
    assert rows_of_first_block(model, captions(model, 8, 8, 7))[:2] == (3, 8)


def test_compiled_blocks_get_the_whole_batch(model):
    block = model.transformer.resblocks[0]
    block.forward = torch.compile(block.forward, backend="eager")
    assert rows_of_first_block(model, captions(model, 3, 2, 8, 4, 2))[:2] == (5, 8)


def test_a_tower_that_attends_to_padding_gets_the_whole_batch():
    model = create_model(tiny_spec(no_causal_mask=True))
    L = model.context_length
    assert rows_of_first_block(model, captions(model, 3, 2, L))[:2] == (3, L)
