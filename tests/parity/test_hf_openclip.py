"""Text towers out of transformers against OpenCLIP's, small and random, built without a network.

OpenCLIP 3.3 cannot build ModernBERT (it passes `add_pooling_layer`, which that model does not take), and its
max_pooler fills a mask of integers, which PyTorch refuses: both are compared with the library itself.
"""

import pytest
import torch

from clip_models.specs import HFTextConfig
from clip_models.towers.text.hf import HFTextTower

transformers = pytest.importorskip("transformers")
pytest.importorskip("open_clip")
from open_clip.hf_model import HFTextEncoder  # noqa: E402

pytestmark = pytest.mark.parity

BERT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
        "vocab_size": 100, "max_position_embeddings": 40, "pad_token_id": 1}  # fmt: skip
SMALL = {
    "roberta": {**BERT, "type_vocab_size": 1},
    "xlm-roberta": {**BERT, "type_vocab_size": 1},
    "bert": {**BERT, "pad_token_id": 0},
    "mt5": {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "vocab_size": 100},
    "m2m_100": {"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 64,
                "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 64, "vocab_size": 100,
                "max_position_embeddings": 40, "scale_embedding": True},
    "modernbert": {**BERT, "global_attn_every_n_layers": 2, "local_attention": 8, "bos_token_id": 2,
                   "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3},
}  # fmt: skip
POOLERS = ["mean_pooler", "cls_pooler", "cls_last_hidden_state_pooler"]


def captions(pad_id):
    """Three captions, one of the full length; the last two columns are all padding."""
    text = torch.randint(4, 100, (3, 14), generator=torch.Generator().manual_seed(1))
    text[0, 5:] = text[1, 9:] = text[:, 12:] = pad_id
    return text


def build_ours(kind, pooler, proj="mlp", output_tokens=False):
    config = {"model_type": kind, **SMALL[kind]}
    return HFTextTower(
        HFTextConfig(model_name=kind, config=config, pooler_type=pooler, proj_type=proj, output_tokens=output_tokens),
        24,
    )


def build_theirs(kind, pooler, folder, proj="mlp", output_tokens=False):
    transformers.AutoConfig.for_model(kind, **SMALL[kind]).save_pretrained(folder)
    return HFTextEncoder(
        str(folder), 24, pooler_type=pooler, proj_type=proj, pretrained=False, output_tokens=output_tokens
    )


def shapes(tower):
    return {name: tuple(tensor.shape) for name, tensor in tower.state_dict().items()}


@pytest.mark.parametrize("pooler", POOLERS)
@pytest.mark.parametrize("kind", [kind for kind in SMALL if kind != "modernbert"])
def test_tensors_features_and_gradients(kind, pooler, tmp_path):
    torch.manual_seed(0)
    ours, reference = build_ours(kind, pooler), build_theirs(kind, pooler, tmp_path)
    assert shapes(ours) == shapes(reference)
    assert [name for name, _ in ours.named_parameters()] == [name for name, _ in reference.named_parameters()]
    text = captions(ours.pad_id)[:, :12]  # dropout draws for padding too: the same length, the same draws
    for source, target in ((ours, reference), (reference, ours)):
        for tensor in source.parameters():
            torch.nn.init.normal_(tensor, std=0.2)
        target.load_state_dict(source.state_dict(), strict=True)
        for train in (False, True):
            features = []
            for tower in (ours.train(train), reference.train(train)):
                tower.zero_grad()
                torch.manual_seed(5)
                features.append(tower(text))
                (features[-1] * torch.linspace(-1, 1, 24)).sum().backward()
            assert features[1].abs().max() > 0.01
            assert (features[0] - features[1]).abs().max() < 1e-5
            for name, parameter in ours.named_parameters():
                expected = reference.get_parameter(name).grad
                if expected is not None:
                    assert (parameter.grad - expected).norm() <= 1e-4 * expected.norm() + 1e-6, name


@pytest.mark.parametrize("pooler", ["mean_pooler", "cls_pooler"])
def test_tokens_for_a_decoder(pooler, tmp_path):
    ours = build_ours("roberta", pooler, "linear", True).eval()
    reference = build_theirs("roberta", pooler, tmp_path, "linear", True).eval()
    reference.load_state_dict(ours.state_dict(), strict=True)
    text = captions(ours.pad_id)
    for mine, theirs in zip(ours(text), reference(text), strict=True):
        assert mine.shape == theirs.shape
        assert (mine - theirs).abs().max() < 1e-5


@pytest.mark.parametrize("kind", SMALL)
def test_max_pooling_and_modernbert_are_those_of_the_library(kind):
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **SMALL[kind])
    library = transformers.AutoModel.from_config(config).eval()
    library = library.encoder if config.is_encoder_decoder else library
    text = captions(config.pad_token_id)
    mask = text != config.pad_token_id
    with torch.no_grad():
        hidden = library(input_ids=text, attention_mask=mask.long()).last_hidden_state
        expected = {
            "max_pooler": torch.stack([row[seen].amax(dim=0) for row, seen in zip(hidden, mask, strict=True)]),
            "mean_pooler": torch.stack([row[seen].mean(dim=0) for row, seen in zip(hidden, mask, strict=True)]),
            "cls_last_hidden_state_pooler": hidden[:, 0],
        }
        for pooler, pooled in expected.items():
            ours = build_ours(kind, pooler, "linear").eval()
            ours.transformer.load_state_dict(
                {name: t for name, t in library.state_dict().items() if not name.startswith("pooler.")}, strict=True
            )
            assert (ours(text) - ours.proj(pooled)).abs().max() < 1e-5
