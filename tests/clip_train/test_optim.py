import math
from dataclasses import replace

import pytest
import torch

from clip_models import CLIPTextConfig, HFTextConfig, ModernTextConfig, create_model, get_model_spec
from clip_models.model import build_model
from clip_train.config import OptimConfig
from clip_train.optim.build import learning_rate, make_optimizer

T5 = {"model_type": "mt5", "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "vocab_size": 50000,
      "pad_token_id": 0}  # fmt: skip
RELATIVE = "text.transformer.block.0.layer.0.SelfAttention.relative_attention_bias.weight"


def groups_of(model: torch.nn.Module) -> tuple[set[str], set[str]]:
    """Names of the parameters that decay, and of those that do not."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, kept = make_optimizer(model, OptimConfig(weight_decay=0.3)).param_groups
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.3, 0.0)
    return tuple({names[id(parameter)] for parameter in group["params"]} for group in (decayed, kept))


def blocks(prefix: str, layers: int, *names: str) -> set[str]:
    return {f"{prefix}transformer.resblocks.{layer}.{name}" for layer in range(layers) for name in names}


MATRICES = ("attn.in_proj_weight", "attn.out_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")


def test_matrices_decay_except_those_that_the_model_exempts():
    model = create_model("ViT-Ti-4-24", seed=0)
    decayed, kept = groups_of(model)
    own = {"token_embedding.weight", "text_projection", "visual.conv1.weight", "visual.proj"}
    assert decayed == own | blocks("", 2, *MATRICES) | blocks("visual.", 4, *MATRICES)
    assert decayed | kept == {name for name, _ in model.named_parameters()}
    assert {"positional_embedding", "visual.positional_embedding", "visual.class_embedding", "logit_scale"} <= kept


def test_no_name_decides_by_a_part_of_it():
    # "ln", "bn" and "bias" are parts of these names, and none of them is a norm or a bias.
    model = torch.nn.Module()
    for name in ("lncrna_proj", "subnet", "unbiased_head"):
        model.register_module(name, torch.nn.Linear(3, 2, bias=False))
    model.register_module("norm", torch.nn.LayerNorm(2))
    assert groups_of(model) == (
        {"lncrna_proj.weight", "subnet.weight", "unbiased_head.weight"},
        {"norm.weight", "norm.bias"},
    )


@pytest.mark.parametrize(
    ("text", "exempt"),
    [
        (CLIPTextConfig(width=16, heads=2, layers=1, embed_cls=True), {"text.positional_embedding"}),
        (
            ModernTextConfig(width=16, heads=2, layers=1, pool_type="map", reg_tokens=2),
            {"text.reg_tokens", "text.pool.query"},
        ),
        (HFTextConfig(model_name="some/t5", config=T5), {RELATIVE}),
    ],
)
def test_the_tables_of_every_kind_of_text_tower_do_not_decay(text, exempt):
    pytest.importorskip("transformers")
    spec = replace(get_model_spec("ViT-Ti-4-24"), custom_text=True, text=text)
    model = build_model(spec)
    shapes = {name: parameter.ndim for name, parameter in model.named_parameters()}
    _, kept = groups_of(model)
    assert {name for name in kept if shapes[name] >= 2} == exempt | {"visual.positional_embedding"}


def test_a_locked_parameter_is_not_optimised():
    model = create_model("ViT-Ti-4-24", seed=0)
    model.lock_image_tower()
    decayed, kept = groups_of(model)
    assert not any(name.startswith("visual.") for name in decayed | kept)


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
    rates = list(map(learning_rate(config, 104), range(104)))
    assert rates[:5] == [0.5, 1.0, 1.5, 2.0, 2.0]
    assert rates[54] == pytest.approx(1.0)
    assert rates[29] == pytest.approx(1 + math.cos(math.pi / 4))
    assert 0 < rates[-1] < 1e-3


def test_a_constant_rate_stays():
    config = OptimConfig(lr=2.0, warmup=2, schedule="constant")
    assert list(map(learning_rate(config, 5), range(5))) == [1.0, 2.0, 2.0, 2.0, 2.0]
