"""Towers out of timm: what is trained and recomputed block by block, and errors that name what is wrong."""

import itertools
import sys

import pytest
import torch

from clip_models.errors import ClipModelsError
from clip_models.specs import TimmConfig
from clip_models.towers.image.timm import TimmTower

timm = pytest.importorskip("timm")

TRUNKS = {
    "vit": TimmConfig(model_name="vit_tiny_patch16_224", image_size=32, pool="token", proj="linear"),
    "convnext": TimmConfig(model_name="convnext_atto", image_size=64, pool="", proj="mlp"),
    "fastvit": TimmConfig(model_name="fastvit_mci0", image_size=64, pool="avg", proj=""),
}
NAMES = {"vit": "Block", "convnext": "ConvNeXtBlock", "fastvit": "RepMixerBlock"}


def build(config):
    torch.manual_seed(0)
    return TimmTower(config, 16)


@pytest.fixture(scope="module", params=TRUNKS)
def family(request):
    return request.param


def image_for(config):
    return torch.randn(2, 3, config.image_size, config.image_size, generator=torch.Generator().manual_seed(1))


def test_blocks_are_those_that_repeat(family):
    blocks = build(TRUNKS[family]).blocks()
    assert len(blocks) > 10
    assert {type(block).__name__ for block in blocks} <= {NAMES[family], "AttentionBlock"}


def test_groups_name_every_parameter_once_and_lock_from_the_input(family):
    tower = build(TRUNKS[family])
    groups = tower.layer_groups()
    assert sorted(itertools.chain(*groups)) == sorted(name for name, _ in tower.named_parameters())
    stem = {"vit": "patch_embed", "convnext": "stem", "fastvit": "stem"}[family]
    assert any(name.startswith(f"trunk.{stem}.") for name in groups[0])
    tower.lock(2)
    assert {name for name, p in tower.named_parameters() if p.requires_grad} == {*groups[-2], *groups[-1]}
    tower.lock()
    assert not any(p.requires_grad for p in tower.parameters())
    with pytest.raises(ClipModelsError, match="-1"):
        tower.lock(-1)


@pytest.mark.slow
def test_frozen_statistics_stay_in_the_locked_part_only():
    tower, config = build(TRUNKS["fastvit"]), TRUNKS["fastvit"]
    groups = tower.layer_groups()
    tower.lock(len(groups) // 2, freeze_bn_stats=True)
    before = {name: t.clone() for name, t in tower.state_dict().items()}
    tower.train()(image_for(config))
    changed = {name for name, t in tower.state_dict().items() if not torch.equal(t, before[name])}
    assert any("running_mean" in name for name in changed)
    locked = {name.rpartition(".")[0] for group in groups[: -(len(groups) // 2)] for name in group}
    assert not {name for name in changed if name.rpartition(".")[0] in locked}


@pytest.mark.slow
def test_recomputation_gives_the_same_gradients(family):
    config, results = TRUNKS[family], []
    for enable in (False, True):
        tower = build(config).train()
        tower.set_grad_checkpointing(enable)
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, saved=saved: saved.append(t.numel()) or t, lambda t: t):
            features = tower(image_for(config))
        features.square().sum().backward()
        results.append((sum(saved), [p.grad for p in tower.parameters()]))
    assert results[1][0] < 0.8 * results[0][0]
    for plain, again in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(again, plain, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_intermediates(family):
    config = TRUNKS[family]
    tower, image = build(config).eval(), image_for(config)
    with torch.no_grad():
        output = tower.forward_intermediates(image, 2, output_extra_tokens=True)
        assert len(output["image_intermediates"]) == 2
        assert all(t.ndim == 4 for t in output["image_intermediates"])
        assert ("image_intermediates_prefix" in output) == (family == "vit")
        torch.testing.assert_close(output["image_features"], tower(image), rtol=1e-4, atol=1e-5)
        # Asked for features too, the trunk runs to its end even with stop_early.
        early = tower.forward_intermediates(image, [0], stop_early=True)
        torch.testing.assert_close(early["image_features"], output["image_features"])
        only = tower.forward_intermediates(image, [0], stop_early=True, intermediates_only=True)
    assert set(only) == {"image_intermediates"}
    with pytest.raises(ClipModelsError, match="output_fmt 'CHWN' is unknown"):
        tower.forward_intermediates(image, output_fmt="CHWN")
    if family != "vit":
        with pytest.raises(ClipModelsError, match=config.model_name):
            tower.forward_intermediates(image, output_fmt="NLC")


def test_a_trunk_of_one_size_is_built_for_the_spec():
    tower = build(TRUNKS["vit"]).eval()
    assert tower.trunk.pos_embed.shape == (1, 2 * 2 + 1, 192)
    with pytest.raises(ClipModelsError, match=r"\[batch, 3, 32, 32\]"):
        tower(torch.zeros(1, 3, 48, 48))
    assert build(TRUNKS["convnext"]).eval()(torch.zeros(1, 3, 96, 64)).shape == (1, 16)


def test_positions_are_not_decayed():
    assert build(TRUNKS["vit"]).no_weight_decay() == {"trunk.pos_embed", "trunk.cls_token"}
    assert build(TRUNKS["convnext"]).no_weight_decay() == set()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_name": "convnext_bse"}, "did you mean .*convnext_base"),
        ({"model_name": "hf-hub:timm/convnext_base"}, "no model 'hf-hub:timm/convnext_base'"),
        ({"pool": "map", "proj": "linear"}, "convnext_atto.*map"),
        ({"patch_dropout": 0.5}, "patch_drop_rate"),
        ({"proj": "none"}, "320 channels, and embed_dim is 16"),
    ],
)
def test_what_timm_cannot_do_is_named(change, message):
    config = {"model_name": "convnext_atto", "image_size": 64, **change}
    with pytest.raises(ClipModelsError, match=message):
        build(TimmConfig(**config))


def test_without_timm_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ClipModelsError, match=r"clip-models\[timm\]"):
        build(TRUNKS["vit"])


def test_nothing_is_downloaded(monkeypatch):
    import huggingface_hub
    import torch.hub

    def refuse(*_args, **_kwargs):
        raise AssertionError("a download")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    build(TRUNKS["convnext"])
