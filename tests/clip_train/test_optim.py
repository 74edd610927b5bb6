import math

import pytest
import torch

from clip_models import create_model
from clip_train.config import OptimConfig
from clip_train.optim import learning_rate, make_optimizer


def test_matrices_decay_and_vectors_norms_biases_and_the_scale_do_not():
    model = create_model("ViT-Ti-4-24", seed=0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, kept = (
        {names[id(parameter)] for parameter in group["params"]}
        for group in make_optimizer(model, OptimConfig(weight_decay=0.3)).param_groups
    )
    assert {
        "token_embedding.weight",
        "positional_embedding",
        "text_projection",
        "visual.conv1.weight",
        "visual.proj",
        "transformer.resblocks.0.attn.in_proj_weight",
        "transformer.resblocks.0.mlp.c_fc.weight",
    } <= decayed
    assert {"logit_scale", "ln_final.weight", "visual.class_embedding", "visual.ln_pre.bias"} <= kept
    assert len(decayed) + len(kept) == len(names)
    assert not any(name.endswith("bias") or "ln_" in name for name in decayed)


def test_a_step_decays_by_the_rate_times_the_decay():
    layer = torch.nn.Linear(3, 2)
    before = {name: p.detach().clone() for name, p in layer.named_parameters()}
    optimizer = make_optimizer(layer, OptimConfig(lr=0.1, weight_decay=0.5))
    for parameter in layer.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(layer.weight.detach(), before["weight"] * 0.95)
    assert torch.equal(layer.bias.detach(), before["bias"])


def test_the_rate_warms_up_and_falls_to_zero_on_a_half_cosine():
    config = OptimConfig(lr=2.0, warmup=4, schedule="cosine")
    rates = [learning_rate(config, step, 104) for step in range(104)]
    assert rates[:5] == [0.5, 1.0, 1.5, 2.0, 2.0]
    assert rates[54] == pytest.approx(1.0)
    assert rates[29] == pytest.approx(1 + math.cos(math.pi / 4))
    assert 0 < rates[-1] < 1e-3


def test_a_constant_rate_stays():
    config = OptimConfig(lr=2.0, warmup=2, schedule="constant")
    assert [learning_rate(config, step, 5) for step in range(5)] == [1.0, 2.0, 2.0, 2.0, 2.0]
