"""Text towers out of transformers: built from a spec alone, locked and recomputed block by block."""

import itertools
import sys

import pytest
import torch

from clip_models.errors import ClipModelsError
from clip_models.specs import HFTextConfig
from clip_models.towers.text.hf import HFTextTower

pytest.importorskip("transformers")

BERT = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64,
        "vocab_size": 100, "max_position_embeddings": 40, "pad_token_id": 1, "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0}  # fmt: skip
CONFIGS = {
    "roberta": {"model_type": "roberta", **BERT},
    "mt5": {"model_type": "mt5", "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 3, "num_heads": 4,
            "vocab_size": 100, "dropout_rate": 0.0},
    "m2m_100": {"model_type": "m2m_100", "d_model": 32, "encoder_layers": 3, "encoder_attention_heads": 4,
                "encoder_ffn_dim": 64, "decoder_attention_heads": 4, "vocab_size": 100, "dropout": 0.0,
                "max_position_embeddings": 40, "encoder_layerdrop": 0.0, "attention_dropout": 0.0},
    "modernbert": {"model_type": "modernbert", **BERT, "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2,
                   "sep_token_id": 3},
}  # fmt: skip
NORMS = {"roberta": "LayerNorm", "mt5": "layer_norm", "m2m_100": "layer_norm", "modernbert": "norm"}


@pytest.fixture(params=CONFIGS)
def kind(request):
    return request.param


def build(kind, **options):
    torch.manual_seed(0)
    config = HFTextConfig(model_name=f"some/{kind}", config=CONFIGS[kind], context_length=16, **options)
    return HFTextTower(config, 24).eval()


def captions(tower, *lengths):
    text = torch.randint(4, 100, (len(lengths), 16), generator=torch.Generator().manual_seed(1))
    for row, length in zip(text, lengths, strict=True):
        row[length:] = tower.pad_id
    return text


@pytest.mark.parametrize("pooler", ["mean_pooler", "max_pooler", "cls_pooler", "cls_last_hidden_state_pooler"])
def test_padding_never_changes_a_feature(kind, pooler):
    tower = build(kind, pooler_type=pooler)
    text = captions(tower, 3, 9)
    with torch.no_grad():
        together = tower(text)
        tower.output_tokens = True  # then nothing is cut off
        assert (tower(text)[0] - together).abs().max() < 1e-5
        assert (tower(text[:1, :3])[0] - together[:1]).abs().max() < 1e-5
        assert (together[0] - together[1]).abs().max() > 1e-5


def test_an_empty_caption_has_finite_features(kind):
    for pooler in ("mean_pooler", "max_pooler"):
        tower = build(kind, pooler_type=pooler)
        assert tower(captions(tower, 0, 2)).isfinite().all()
        assert tower(captions(tower, 0)).isfinite().all()


def test_only_parameters_are_saved_and_none_that_is_unused(kind):
    tower = build(kind)
    assert set(tower.state_dict()) == {name for name, _ in tower.named_parameters()}
    tower(captions(tower, 3, 9)).square().sum().backward()
    assert [name for name, p in tower.named_parameters() if p.grad is None] == []
    assert not any("decoder" in name or "pooler" in name for name in tower.state_dict())


def test_the_pooler_of_the_library_is_there_where_it_is_used():
    assert "transformer.pooler.dense.weight" in build("roberta", pooler_type="cls_pooler").state_dict()


def test_groups_name_every_parameter_once_and_lock_from_the_input(kind):
    tower = build(kind)
    groups = tower.layer_groups()
    assert sorted(itertools.chain(*groups)) == sorted(name for name, _ in tower.named_parameters())
    assert len(groups) == 1 + 3 + 1
    assert groups[-1] == ["proj.0.weight", "proj.2.weight"]
    assert all("embed" in name for name in groups[0])
    tower.lock(2)
    assert {name for name, p in tower.named_parameters() if p.requires_grad} == {*groups[-2], *groups[-1]}
    tower.lock()
    assert not any(p.requires_grad for p in tower.parameters())
    tower.lock(freeze_layer_norm=False)
    trained = [name for name, p in tower.named_parameters() if p.requires_grad]
    assert trained
    assert all(NORMS[kind] in name for name in trained)


@pytest.mark.slow
def test_recomputation_gives_the_same_gradients(kind):
    results = []
    for enable in (False, True):
        tower = build(kind).train()
        tower.set_grad_checkpointing(enable)
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, saved=saved: saved.append(t.numel()) or t, lambda t: t):
            features = tower(captions(tower, 3, 9))
        features.square().sum().backward()
        results.append((sum(saved), [p.grad for p in tower.parameters()]))
    assert results[1][0] < 0.8 * results[0][0]
    for plain, again in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(again, plain)
    tower.set_grad_checkpointing(False)
    assert not any(getattr(block, "gradient_checkpointing", False) for block in tower.blocks())


def test_recomputation_of_a_locked_tower_runs_no_gradients_through_it(kind):
    tower = build(kind).train()
    tower.set_grad_checkpointing()
    tower.lock(1)
    tower(captions(tower, 3, 9)).sum().backward()
    assert all(p.grad is not None for p in tower.proj.parameters())
    assert not tower.transformer(input_ids=captions(tower, 3, 9)).last_hidden_state.requires_grad


def test_intermediates(kind):
    tower = build(kind)
    text = captions(tower, 3, 16)
    output = tower.forward_intermediates(text, normalize_intermediates=True)
    assert [tuple(t.shape) for t in output["text_intermediates"]] == [(2, 16, 32)] * 3
    torch.testing.assert_close(output["text_features"], tower(text))
    tower.output_tokens = True
    torch.testing.assert_close(output["text_intermediates"][-1][1], tower(text)[1][1])
    assert not any(block._forward_hooks for block in tower.blocks())
    only = tower.forward_intermediates(text, [1], intermediates_only=True)
    assert set(only) == {"text_intermediates"}
    assert len(only["text_intermediates"]) == 1


def test_tables_of_positions_are_not_decayed():
    assert build("roberta").no_weight_decay() == {
        "transformer.embeddings.position_embeddings.weight",
        "transformer.embeddings.token_type_embeddings.weight",
    }


def test_weights_are_float32_whatever_the_config_says():
    config = HFTextConfig(model_name="x", config={**CONFIGS["roberta"], "torch_dtype": "float16"})
    assert {p.dtype for p in HFTextTower(config, 24).parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        ({**CONFIGS["roberta"], "model_type": "robrta"}, {}, "robrta"),
        ({**CONFIGS["roberta"], "num_attention_heads": 5}, {}, "some/model"),
        (
            {**CONFIGS["roberta"], "max_position_embeddings": True},
            {},
            "cannot build 'some/model' from text.config: .*max",
        ),
        ({**CONFIGS["roberta"], "pad_token_id": None}, {}, "pad_token_id"),
        (CONFIGS["roberta"], {"proj_type": "none"}, "embed_dim 24"),
    ],
)
def test_impossible_configs_are_named(config, options, message):
    with pytest.raises(ClipModelsError, match=message):
        HFTextTower(HFTextConfig(model_name="some/model", config={"vocab_size": 100, **config}, **options), 24)


def test_wrong_ids_are_named():
    tower = build("roberta")
    with pytest.raises(ClipModelsError, match="100 is outside the vocabulary"):
        tower(torch.full((1, 4), 100))
    with pytest.raises(ClipModelsError, match="up to 16"):
        tower(torch.zeros(1, 17, dtype=torch.int64))


def test_without_transformers_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ClipModelsError, match=r"clip-models\[hf\]"):
        build("roberta")


def test_nothing_is_downloaded(monkeypatch, kind):
    import socket

    import huggingface_hub

    def refuse(*_args, **_kwargs):
        raise AssertionError("a download")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    build(kind)
