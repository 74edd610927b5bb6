"""On a CPU a causal text tower computes the tokens up to the pooled one of each caption, and no others."""

from dataclasses import replace

import pytest
import torch

from clip_models import CLIPTextConfig
from clip_models.towers.text import clip as module
from clip_models.towers.text.clip import TextTransformer

CONFIG = CLIPTextConfig(context_length=8, vocab_size=100, width=64, heads=2, layers=3)
END = 99
MIXED = (3, 2, 8, 4, 2)


def build(**options):
    torch.manual_seed(0)
    return TextTransformer(replace(CONFIG, **options), embed_dim=32)


def captions(*lengths):
    text = torch.zeros(len(lengths), 8, dtype=torch.int64)
    for row, length in enumerate(lengths):
        text[row, :length] = torch.randint(1, END, (length,), generator=torch.Generator().manual_seed(row))
        text[row, length - 1] = END
    return text


def input_of_first_block(tower, text):
    seen = []
    tower.transformer.resblocks[0].register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape)))
    tower(text)
    return seen[0]


def features_and_gradients(tower, text):
    features = tower(text)
    weights = torch.linspace(-1, 1, features.numel()).view_as(features)
    return features.detach(), torch.autograd.grad((features * weights).sum(), list(tower.parameters()))


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("options", [{}, {"pool_type": "eos", "eos_id": END}, {"layers": 1}])
def test_features_and_gradients_are_those_of_the_padded_batch(options, recompute, monkeypatch):
    tower = build(**options)
    tower.set_grad_checkpointing(recompute)
    packed, packed_grads = features_and_gradients(tower, captions(*MIXED))
    monkeypatch.setattr(module, "PACKED_SHARE", 0)
    padded, padded_grads = features_and_gradients(tower, captions(*MIXED))
    torch.testing.assert_close(packed, padded, rtol=1e-5, atol=1e-6)
    for mine, expected in zip(packed_grads, padded_grads, strict=True):
        assert (mine - expected).norm() <= 1e-5 * expected.norm() + 1e-6


def test_only_tokens_that_decide_the_features_are_computed():
    assert input_of_first_block(build(), captions(*MIXED)) == (sum(MIXED), 64)


def test_a_batch_of_nearly_equal_lengths_stays_padded():
    assert input_of_first_block(build(), captions(8, 8, 7)) == (3, 8, 64)


def test_compiled_blocks_get_the_whole_batch():
    tower = build()
    block = tower.transformer.resblocks[0]
    block.forward = torch.compile(block.forward, backend="eager")
    assert input_of_first_block(tower, captions(*MIXED)) == (5, 8, 64)


@pytest.mark.parametrize("options", [{"no_causal_mask": True}, {"pool_type": "last"}, {"output_tokens": True}])
def test_towers_that_need_other_tokens_get_the_whole_batch(options):
    assert input_of_first_block(build(**options), captions(*MIXED)) == (5, 8, 64)
