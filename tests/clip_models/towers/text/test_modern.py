"""The modern text tower: what its captions may look like, what trains, how it starts."""

import itertools
from dataclasses import replace

import pytest
import torch

from clip_models.errors import ClipModelsError
from clip_models.specs import ModernTextConfig
from clip_models.towers.text.modern import ModernTextTransformer

EOS, PAD = 97, 98
BASE = ModernTextConfig(
    eos_id=EOS, pad_id=PAD, context_length=24, vocab_size=100, width=32, heads=4, layers=3, mlp_ratio=2.0
)
EVERYTHING = replace(
    BASE,
    attention_mode="bidirectional",
    pool_type="map",
    qk_norm=True,
    attn_gated=True,
    attention_bias=True,
    mlp_bias=True,
    proj_bias=True,
    pre_norm=True,
    norm_placement="sandwich",
    reg_tokens=2,
    value_residual=True,
    ls_init_value=0.5,
)
KINDS = {
    "eos": BASE,
    "mean": replace(BASE, pool_type="mean"),
    "bidirectional": replace(BASE, attention_mode="bidirectional", pool_type="mean", norm_type="layernorm"),
    "no positions": replace(BASE, pos_embed="none", mlp_type="relu2"),
    "everything": EVERYTHING,
}


def build(config, seed=0):
    torch.manual_seed(seed)
    return ModernTextTransformer(config, 16).eval()


def captions(*lengths, total=24):
    """Rows of random tokens that end with EOS, padded to `total`."""
    text = torch.full((len(lengths), total), PAD)
    generator = torch.Generator().manual_seed(1)
    for row, length in zip(text, lengths, strict=True):
        row[:length] = torch.randint(0, 96, (length,), generator=generator)
        row[length - 1] = EOS
    return text


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_padding_never_changes_a_feature(kind):
    tower = build(KINDS[kind])
    text = captions(3, 9, 14)
    together = tower(text)
    tower.output_tokens = True  # then nothing is cut off
    with torch.no_grad():
        assert (tower(text)[0] - together).abs().max() < 1e-5
        for row, feature in zip(text, together, strict=True):
            for length in (int((row != PAD).sum()), 20):
                assert (tower(row[None, :length])[0] - feature).abs().max() < 1e-5
        assert (together[0] - together[1]).abs().max() > 1e-3


def test_what_stands_behind_a_token_counts_only_in_bidirectional_attention():
    text = captions(10)
    other = text.clone()
    other[0, 8] = (text[0, 8] + 1) % 96
    for mode, reaches in (("causal", False), ("bidirectional", True)):
        tower = build(replace(BASE, attention_mode=mode, output_tokens=True))
        before, after = (tower(ids)[1][0, 7] for ids in (text, other))
        assert (not torch.equal(before, after)) == reaches


def test_a_caption_that_lost_its_end_is_pooled_at_its_last_token():
    tower = build(replace(BASE, output_tokens=True, proj_type="none", width=16, heads=4))
    text = captions(10)
    text[0, 9] = 5
    pooled, tokens = tower(text)
    assert torch.equal(pooled[0], tokens[0, 9])
    text[0, 4] = text[0, 6] = EOS
    pooled, tokens = tower(text)
    assert torch.equal(pooled[0], tokens[0, 4])


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_caption_has_finite_features(kind):
    text = torch.full((2, 6), PAD)
    text[1, 0] = EOS
    assert build(KINDS[kind])(text).isfinite().all()
    assert build(KINDS[kind])(text[:1]).isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_recomputation_gives_the_same_gradients(kind):
    tower, gradients = build(KINDS[kind]).train(), []
    for enable in (False, True):
        tower.set_grad_checkpointing(enable)
        tower.zero_grad()
        tower(captions(3, 9)).square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in tower.parameters()])
    assert all(torch.equal(plain, again) for plain, again in zip(*gradients, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["eos", "everything"])
def test_compiles_into_one_graph(kind):
    tower = build(KINDS[kind])
    text = captions(3, 24)
    with torch.no_grad():
        compiled = torch.compile(tower, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(text), tower(text))


def test_intermediates():
    tower = build(EVERYTHING)
    text = captions(4, 7)
    all_of_them = tower.forward_intermediates(text, normalize_intermediates=True, output_extra_tokens=True)
    assert [tuple(t.shape) for t in all_of_them["text_intermediates"]] == [(2, 24, 32)] * 3
    assert [tuple(t.shape) for t in all_of_them["text_intermediates_extra"]] == [(2, 2, 32)] * 3
    torch.testing.assert_close(all_of_them["text_features"], tower(text))
    tower.output_tokens = True
    torch.testing.assert_close(all_of_them["text_intermediates"][-1], tower(text)[1])
    tower.blocks[2] = None  # the last block is not needed, and is not run
    early = tower.forward_intermediates(text, [1], stop_early=True, intermediates_only=True)
    assert set(early) == {"text_intermediates"}
    torch.testing.assert_close(tower.ln_final(early["text_intermediates"][0]), all_of_them["text_intermediates"][1])
    with pytest.raises(ClipModelsError, match="NCHW"):
        tower.forward_intermediates(text, output_fmt="NCHW")


@pytest.mark.parametrize("kind", KINDS)
def test_groups_name_every_parameter_once_and_lock_from_the_input(kind):
    tower = build(KINDS[kind])
    groups = tower.layer_groups()
    assert sorted(itertools.chain(*groups)) == sorted(name for name, _ in tower.named_parameters())
    assert "token_embedding.weight" in groups[0]
    assert "text_projection.weight" in groups[-1]
    assert len(groups) == 1 + 3 + 1
    tower.lock(2)
    assert [name for name, p in tower.named_parameters() if p.requires_grad] == groups[-2] + groups[-1]
    tower.lock()
    assert not any(p.requires_grad for p in tower.parameters())
    tower.lock(freeze_layer_norm=False)
    trained = {name for name, p in tower.named_parameters() if p.requires_grad}
    assert trained
    assert all("norm" in name or "ln_final" in name for name in trained)


def test_blocks_are_the_modules_under_openclips_name():
    tower = build(BASE)
    assert tower.blocks() == [tower.get_submodule(f"blocks.{number}") for number in range(3)]
    assert tower.no_weight_decay() == set()
    assert build(EVERYTHING).no_weight_decay() == {"reg_tokens", "pool.query"}


def deviation(tensor):
    return pytest.approx(tensor.std().item(), rel=5 / tensor.numel() ** 0.5)


def test_initial_weights():
    config = ModernTextConfig(eos_id=1, pad_id=0, vocab_size=512, width=128, heads=4, layers=2, attn_gated=True,
                              gate_bias=True, pool_type="map", reg_tokens=2, value_residual=True)  # fmt: skip
    tower = build(config)
    block = tower.blocks[1]
    width = 128**-0.5
    assert width == deviation(block.attn.qkv.weight) == deviation(block.attn.gate.weight)
    assert width == deviation(tower.text_projection.weight) == deviation(tower.pool.kv.weight)
    assert width / 2 == deviation(block.attn.proj.weight) == deviation(block.mlp.w3.weight)
    assert deviation(block.mlp.w12.weight) == 1.22 * 256**-0.5
    assert deviation(tower.token_embedding.weight[1:]) == 0.02
    assert not tower.token_embedding.weight[0].any()
    assert tower.reg_tokens.abs().max() < 1e-4
    assert (block.attn.gate.bias == 1).all()
    assert block.attn.vr_lambda.item() == 0.5
    sandwich = build(replace(config, norm_placement="sandwich")).blocks[1]
    assert 0.02 == deviation(sandwich.attn.qkv.weight) == deviation(sandwich.mlp.w12.weight)
    assert deviation(sandwich.mlp.w3.weight) == 0.02
    still = build(replace(config, zero_init_residual=True))
    assert not still.blocks[0].attn.proj.weight.any()
    assert not still.blocks[0].mlp.w3.weight.any()


def test_low_precision_keeps_the_angles_exact():
    """Positions in bfloat16 would not tell 257 from 256."""
    config = replace(BASE, context_length=300, output_tokens=True)
    tower = build(config)
    text = torch.randint(0, 96, (1, 300), generator=torch.Generator().manual_seed(0))
    exact = tower(text)[1]
    low = tower.to(torch.bfloat16)(text)[1]
    assert low.dtype == torch.bfloat16
    error = (low.float() - exact).norm(dim=-1) / exact.norm(dim=-1)
    assert error.max() < 0.05


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"attention_mode": "both"}, "attention_mode"),
        ({"pos_embed": "learned"}, "pos_embed"),
        ({"mlp_type": "geglu"}, "mlp_type"),
        ({"norm_type": "batchnorm"}, "norm_type"),
        ({"norm_placement": "post"}, "norm_placement"),
        ({"pool_type": "last"}, "pool_type"),
        ({"eos_id": None}, "eos_id"),
        ({"eos_id": 100}, "outside the vocabulary"),
        ({"pad_id": -1}, "outside the vocabulary"),
        ({"heads": 5}, "multiple"),
        ({"width": 12, "heads": 4}, "even"),
        ({"reg_tokens": -1}, "reg_tokens"),
    ],
)
def test_impossible_configs_are_named(change, named):
    with pytest.raises(ClipModelsError, match=named):
        replace(BASE, **change)


def test_wrong_input_is_named():
    tower = build(BASE)
    with pytest.raises(ClipModelsError, match="up to 24"):
        tower(torch.zeros(1, 25, dtype=torch.int64))
    with pytest.raises(ClipModelsError, match="100 is outside the vocabulary"):
        tower(torch.full((1, 4), 100))
    with pytest.raises(ClipModelsError, match="float32"):
        tower(torch.zeros(1, 4))
    with pytest.raises(ClipModelsError, match="embed_dim"):
        ModernTextTransformer(replace(BASE, proj_type="none"), 16)


def test_low_precision_matrices_with_float32_norms():
    tower = build(EVERYTHING)
    text = captions(3, 9)
    exact = tower(text)
    for module in tower.modules():
        if isinstance(module, torch.nn.Linear):
            module.to(torch.bfloat16)
    low = tower(text)
    assert low.dtype == torch.bfloat16
    assert (low - exact).norm() < 0.05 * exact.norm()
    with torch.autocast("cpu", torch.bfloat16):
        assert (build(EVERYTHING)(text) - exact).norm() < 0.05 * exact.norm()
