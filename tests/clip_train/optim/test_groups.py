from dataclasses import replace

import pytest
import torch

from clip_models import CLIPTextConfig, HFTextConfig, ModernTextConfig, TimmConfig, create_model, get_model_spec
from clip_models.model import build_model
from clip_train.errors import ClipTrainError
from clip_train.optim.build import make_optimizer
from clip_train.optim.config import OptimConfig
from clip_train.optim.groups import parameter_groups

T5 = {"model_type": "mt5", "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "vocab_size": 50000,
      "pad_token_id": 0}  # fmt: skip
RELATIVE = "text.transformer.block.0.layer.0.SelfAttention.relative_attention_bias.weight"


def groups_of(model: torch.nn.Module, **options) -> tuple[set[str], set[str]]:
    """Names of the parameters that decay, and of those that do not."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, kept = make_optimizer(model, OptimConfig(weight_decay=0.3, **options)).param_groups
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


def by_name(model: torch.nn.Module, key: str, **options) -> dict[str, object]:
    """The value of a key of the groups for each parameter."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, OptimConfig(**options))
    return {names[id(parameter)]: group.get(key) for group in groups for parameter in group["params"]}


def test_the_rule_of_openclip_goes_by_the_parts_of_names():
    # Release 3.3 spares what has fewer than two dimensions or bn, ln, bias or logit_scale in its name.
    model = create_model("ViT-Ti-4-24", seed=0)
    decayed, kept = groups_of(model, decay_rule="openclip")
    tables = {"positional_embedding", "visual.positional_embedding"}
    by_dimension, _ = groups_of(model)
    assert decayed == by_dimension | tables
    assert "visual.class_embedding" in kept
    subnet = torch.nn.ModuleDict({"plnk": torch.nn.Linear(3, 2), "head": torch.nn.Linear(2, 2)})
    assert groups_of(subnet, decay_rule="openclip") == ({"head.weight"}, {"plnk.weight", "plnk.bias", "head.bias"})


def test_further_patterns_do_not_decay():
    model = create_model("ViT-Ti-4-24", seed=0)
    before, _ = groups_of(model)
    decayed, _ = groups_of(model, no_decay=("visual.proj", "*token_embedding*"))
    assert before - decayed == {"visual.proj", "token_embedding.weight"}


@pytest.mark.parametrize("key", ["no_decay", "fallback", "rates"])
def test_a_pattern_without_a_match_is_named_with_the_nearest_parameter(key):
    value = {"visual.poj": 0.5} if key == "rates" else ("visual.poj",)
    with pytest.raises(ClipTrainError, match=rf"optim\.{key}: .*'visual\.poj' .* did you mean visual\.proj\?"):
        parameter_groups(create_model("ViT-Ti-4-24", seed=0), OptimConfig(name="muon", **{key: value}))


def test_the_factors_of_all_patterns_that_match_are_multiplied():
    rates = by_name(create_model("ViT-Ti-4-24", seed=0), "rate", rates={"visual.*": 0.1, "*.proj": 0.5})
    assert rates["visual.proj"] == pytest.approx(0.05)
    assert rates["visual.conv1.weight"] == 0.1
    assert rates["text_projection"] == rates["logit_scale"] == 1.0


def test_the_layers_of_a_native_model_decay_by_their_depth():
    rates = by_name(create_model("ViT-Ti-4-24", seed=0), "rate", image_layer_decay=0.5, text_layer_decay=0.9)
    # The image tower has a stem, 4 blocks and the projection; the text tower 2 blocks.
    depth = {"proj": 0, "ln_post.bias": 1, "transformer.resblocks.3.ln_1.weight": 1, "conv1.weight": 5}
    depth |= {"transformer.resblocks.0.mlp.c_fc.weight": 4, "positional_embedding": 5}
    assert {name: rates[f"visual.{name}"] for name in depth} == {name: 0.5**steps for name, steps in depth.items()}
    assert rates["text_projection"] == 1.0
    assert rates["transformer.resblocks.1.ln_1.weight"] == rates["ln_final.weight"] == pytest.approx(0.9)
    assert rates["transformer.resblocks.0.ln_1.weight"] == pytest.approx(0.81)
    assert rates["token_embedding.weight"] == pytest.approx(0.729)
    assert rates["logit_scale"] == 1.0


def test_the_layers_of_timm_and_hf_towers_decay_by_their_depth():
    pytest.importorskip("transformers")
    pytest.importorskip("timm")
    spec = get_model_spec("ViT-Ti-4-24")
    vision = TimmConfig(
        model_name="vit_tiny_patch16_224",
        pool="token",
        proj="linear",
        image_size=24,
        model_kwargs={"patch_size": 8, "depth": 2, "embed_dim": 16, "num_heads": 2},
    )
    spec = replace(spec, custom_text=True, vision=vision, text=HFTextConfig(model_name="some/t5", config=T5))
    model = build_model(spec)
    names = {name for name, _ in model.named_parameters()}
    rates = by_name(model, "rate", image_layer_decay=0.5, text_layer_decay=0.25)
    assert set(rates) == names
    head = {name for name in names if name.startswith("visual.head")}
    assert head
    assert {rates[name] for name in head} == {1.0}
    blocks = [rates[f"visual.trunk.blocks.{number}.attn.qkv.weight"] for number in (0, 1)]
    assert blocks[0] == blocks[1] * 0.5 < 1
    assert rates["visual.trunk.patch_embed.proj.weight"] == min(rates[name] for name in names if "visual" in name)
    assert rates["text.transformer.block.0.layer.0.SelfAttention.q.weight"] == 0.25
    assert rates["text.transformer.embed_tokens.weight"] == 0.0625


def test_a_tower_without_groups_is_named():
    with pytest.raises(ClipTrainError, match=r"optim\.image_layer_decay: .*the model has no towers"):
        parameter_groups(torch.nn.Linear(2, 2), OptimConfig(image_layer_decay=0.5))
    with pytest.raises(ClipTrainError, match="no parameter of the model is trainable"):
        parameter_groups(torch.nn.Linear(2, 2).requires_grad_(False), OptimConfig())


def test_muon_leaves_tables_to_adamw():
    model = create_model("ViT-Ti-4-24", seed=0)
    routed = by_name(model, "use_fallback", name="muon", fallback=("text_projection", "visual.proj"))
    tables = {"token_embedding.weight", "positional_embedding", "visual.positional_embedding", "visual.class_embedding"}
    assert {name for name, value in routed.items() if value} == tables | {"text_projection", "visual.proj"}
    assert not any(by_name(model, "use_fallback").values())


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
