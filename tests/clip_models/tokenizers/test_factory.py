"""The tokenizer of a model, and the pairs that must not be."""

from dataclasses import replace

import pytest
import torch

import clip_models
from clip_models import ClipModelsError, CLIPTextConfig, HFTextConfig, ModernTextConfig, TokenizerConfig, get_model_spec
from clip_models.tokenizers import ClipTokenizer, check_fit, decode, get_tokenizer, tokenize
from clip_models.tokenizers.hf import HFTokenizer
from clip_models.tokenizers.sentencepiece import SigLipTokenizer
from clip_models.tokenizers.tiktoken import TikTokenTokenizer

TINY = get_model_spec("ViT-Ti-4-24")
SIGLIP_TEXT = {"no_causal_mask": True, "pool_type": "last", "context_length": 64}


def with_text(text, **tokenizer):
    return replace(TINY, text=text, tokenizer=TokenizerConfig(**tokenizer))


def refusal(call, *args, **options) -> str:
    with pytest.raises(ClipModelsError) as caught:
        call(*args, **options)
    return str(caught.value)


@pytest.fixture
def siglip(siglip_model):
    """A spec as SigLIP's, with a small vocabulary."""
    text = CLIPTextConfig(vocab_size=110, **SIGLIP_TEXT)
    return with_text(text, kind="sentencepiece", name=str(siglip_model))


def test_every_kind_is_built_from_its_spec(siglip, byte_bpe, tiktoken_file):
    assert isinstance(get_tokenizer(TINY), ClipTokenizer)
    assert isinstance(get_tokenizer(siglip), SigLipTokenizer)
    text = CLIPTextConfig(vocab_size=400, pool_type="eos", eos_id=2)
    assert isinstance(get_tokenizer(with_text(text, kind="hf", name=str(byte_bpe))), HFTokenizer)
    modern = ModernTextConfig(vocab_size=303, eos_id=300, pad_id=301, bos_id=302)
    built = get_tokenizer(with_text(modern, kind="tiktoken", name=str(tiktoken_file)))
    assert isinstance(built, TikTokenTokenizer)
    assert built.encode_numpy("a")[0, :4].tolist() == [302, 97, 300, 301]
    assert built.context_length == modern.context_length


@pytest.mark.parametrize("name", [name for name in clip_models.list_models() if "/" not in name])
def test_every_clip_bpe_architecture_fits_its_tokenizer(name):
    spec = get_model_spec(name)
    if spec.tokenizer.kind == "clip-bpe":
        assert get_tokenizer(spec)("a cat").shape == (1, spec.text.context_length)


def test_options_override_the_spec():
    tokenizer = get_tokenizer("ViT-B-32", context_length=16, clean="canonicalize", reduction_mask="simple")
    assert (tokenizer.context_length, tokenizer.clean, tokenizer.reduction) == (16, "canonicalize", "simple")
    assert "no option 'lower_case'; choose from clean, kind" in refusal(get_tokenizer, "ViT-B-32", lower_case=True)


def test_a_context_longer_than_the_towers_is_refused():
    assert "context_length 100 is more than the text.context_length 77 of ViT-B-32" in refusal(
        get_tokenizer, "ViT-B-32", context_length=100
    )


def test_a_folder_brings_its_tokenizer(tmp_path, byte_bpe, monkeypatch):
    """As in OpenCLIP, the files beside the model come before the repository that its config names."""
    from clip_models.weights import locate

    spec = with_text(CLIPTextConfig(vocab_size=400, pool_type="eos", eos_id=2), kind="hf", name="org/elsewhere")
    for file in byte_bpe.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    monkeypatch.setattr(locate, "locate", lambda name, **options: name)
    monkeypatch.setattr(locate, "settle", lambda asked, source: spec)
    assert get_tokenizer(f"local-dir:{tmp_path}").name == str(tmp_path)


class TestMismatches:
    """What OpenCLIP's issues #903 and #1118 report: SigLIP with captions it was not trained on, and no complaint."""

    def test_siglip_gets_captions_as_it_was_trained(self, siglip):
        ids = get_tokenizer(siglip)(["A Photo of a CAT!", "a photo of a cat"])
        assert ids.shape == (2, 64)
        assert torch.equal(ids[0], ids[1])
        assert (ids[:, -1] == 1).all()

    def test_another_cleaning_is_refused(self, siglip, siglip_model):
        message = refusal(check_fit, SigLipTokenizer(siglip_model, clean="lower"), siglip)
        assert "cleans captions by 'lower'" in message
        assert "set clean='canonicalize'" in message

    def test_another_vocabulary_is_refused(self, siglip):
        message = refusal(check_fit, ClipTokenizer(64, "canonicalize"), siglip)
        assert "ids go up to 49407" in message
        assert "text.vocab_size 110" in message
        assert "sentencepiece" in message

    def test_siglips_of_the_table_refuse_clips_tokenizer(self):
        for name in ("ViT-B-16-SigLIP", "ViT-B-16-SigLIP2"):
            assert refusal(check_fit, ClipTokenizer(64), get_model_spec(name))

    def test_a_name_that_is_no_model_is_not_clips_tokenizer(self):
        assert "unknown model 'SigLIP'" in refusal(get_tokenizer, "SigLIP")

    def test_rows_that_are_not_padded_are_refused_by_the_tower(self, siglip):
        torch.manual_seed(0)
        model = clip_models.CLIP(siglip).eval()
        ids = get_tokenizer(siglip)("a cat")
        assert "pad captions to 64 tokens" in refusal(model.encode_text, ids[:, :8])


def test_an_end_token_that_is_not_pooled_is_refused(byte_bpe):
    text = CLIPTextConfig(vocab_size=400, pool_type="eos", eos_id=3)
    message = refusal(get_tokenizer, with_text(text, kind="hf", name=str(byte_bpe)))
    assert "text.eos_id 3" in message
    assert "ends captions with 2" in message
    message = refusal(get_tokenizer, with_text(CLIPTextConfig(vocab_size=400), kind="hf", name=str(byte_bpe)))
    assert "set text.pool_type = 'eos', text.eos_id = 2" in message


def test_padding_that_the_tower_does_not_leave_out_is_refused(byte_bpe):
    config = {"model_type": "bert", "vocab_size": 400, "hidden_size": 32, "pad_token_id": 0}
    text = HFTextConfig(model_name="any", config=config)
    message = refusal(get_tokenizer, with_text(text, kind="hf", name=str(byte_bpe)))
    assert "text.pad_id 0" in message
    assert "pads with 1" in message
    modern = ModernTextConfig(vocab_size=400, eos_id=2)
    assert "text.pad_id 0" in refusal(get_tokenizer, with_text(modern, kind="hf", name=str(byte_bpe)))


def test_module_level_functions_are_clips():
    ids = tokenize(["a photo of a cat", "a dog"])
    assert ids.shape == (2, 77)
    assert tokenize("a dog", context_length=5).tolist() == [[49406, 320, 1929, 49407, 0]]
    assert decode(ids[1][:4]) == "<start_of_text>a dog <end_of_text>"
