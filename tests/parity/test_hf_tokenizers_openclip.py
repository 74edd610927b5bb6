"""Token ids against OpenCLIP's HFTokenizer, with tokenizers trained on the spot."""

import pytest

from clip_models.tokenizers import ClipTokenizer
from clip_models.tokenizers import reductions as reductions_module
from clip_models.tokenizers.hf import HFTokenizer
from clip_models.tokenizers.sentencepiece import SigLipTokenizer
from tests.support import tokenizers as small

open_clip = pytest.importorskip("open_clip")
pytest.importorskip("transformers")
pytestmark = pytest.mark.parity

KINDS = {
    "wordpiece": small.make_wordpiece,
    "byte bpe": small.make_byte_bpe,
    "nllb": small.make_nllb,
    "t5": small.make_t5,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("tokenizers")
    return {name: make(root / name.replace(" ", "_")) for name, make in KINDS.items()}


def encodable(captions):
    """OpenCLIP's tokenizers do not take lone surrogates."""
    return [text for text in captions if "\ud800" not in text]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("clean", ["whitespace", "lower", "canonicalize"])
def test_ids_are_identical(folders, kind, clean):
    reference = open_clip.tokenizer.HFTokenizer(str(folders[kind]), context_length=24, clean=clean)
    ours = HFTokenizer(folders[kind], context_length=24, clean=clean)
    captions = encodable(small.CAPTIONS)
    expected = reference(captions)
    assert (ours(captions) == expected).all()
    assert expected.unique().numel() > 30
    assert (ours(captions, context_length=8) == reference(captions, context_length=8)).all()
    whole = reference(captions, context_length=1000)
    cut = int((whole[:, 24:] != whole[0, -1]).any(dim=1).sum())
    assert ours.count_truncated(captions) == cut > 0


def test_a_stripped_separator_is_identical(folders):
    settings = {"context_length": 12, "strip_sep_token": True}
    reference = open_clip.tokenizer.HFTokenizer(str(folders["wordpiece"]), **settings)
    captions = encodable(small.CAPTIONS)
    assert (HFTokenizer(folders["wordpiece"], **settings)(captions) == reference(captions)).all()


@pytest.mark.parametrize("language", ["fra_Latn", "deu_Latn"])
def test_languages_are_those_of_transformers(folders, language):
    """OpenCLIP's own setting is lost: transformers goes back to src_lang, which it leaves alone, at every call."""
    reference = open_clip.tokenizer.HFTokenizer(str(folders["nllb"]), context_length=12, language=language)
    reference.tokenizer.src_lang = language
    ours = HFTokenizer(folders["nllb"], context_length=12, language=language)
    captions = encodable(small.CAPTIONS)
    assert (ours(captions) == reference(captions)).all()
    assert (ours(captions) != HFTokenizer(folders["nllb"], context_length=12)(captions)).any()


def test_clips_mode_is_identical(folders):
    reference = open_clip.tokenizer.HFTokenizer(str(folders["byte bpe"]), context_length=12, tokenizer_mode="clips")
    ours = HFTokenizer(folders["byte bpe"], context_length=12, mode="clips")
    captions = encodable(small.CAPTIONS)
    assert (ours(captions) == reference(captions)).all()


def test_siglip_is_identical(folders):
    """OpenCLIP reads the model file through transformers' T5Tokenizer."""
    reference = open_clip.tokenizer.HFTokenizer(str(folders["t5"]), context_length=64, clean="canonicalize")
    ours = SigLipTokenizer(folders["t5"] / "spiece.model")
    captions = encodable(small.CAPTIONS)
    assert (ours(captions) == reference(captions)).all()
    assert ours.vocab_size == len(reference.tokenizer)


def seed_all(seed):
    import random

    import torch

    random.seed(seed)
    torch.manual_seed(seed)


@pytest.mark.parametrize("reduction", ["simple", "random", "shuffle"])
def test_reductions_are_identical(reduction):
    captions = encodable(small.CAPTIONS)
    reference = open_clip.SimpleTokenizer(context_length=8, reduction_mask=reduction)
    ours = ClipTokenizer(context_length=8, reduction=reduction)
    for seed in range(5):
        seed_all(seed)
        expected = reference(captions)
        seed_all(seed)
        assert (ours(captions) == expected).all()


def test_reduction_by_syntax_is_identical(monkeypatch):
    """With a stand-in for nltk: its data cannot be had without a network."""
    import random
    import sys
    import types

    def tag(words):
        return [(word, random.Random(word).choice(["NN", "NNS", "JJ", "VBD", "DT", "IN"])) for word in words]

    stand_in = types.SimpleNamespace(
        tokenize=types.SimpleNamespace(word_tokenize=str.split), pos_tag=tag, download=lambda name: None
    )
    monkeypatch.setitem(sys.modules, "nltk", stand_in)
    captions = [text for text in encodable(small.CAPTIONS) if text.strip()]
    captions.append("one two three four five six seven eight nine ten eleven twelve")
    for length in (6, 24):
        reference = open_clip.SimpleTokenizer(context_length=length, reduction_mask="syntax")(captions)
        ours = ClipTokenizer(context_length=length, reduction="syntax")
        assert (ours(captions) == reference).all()
    assert reductions_module.keep_by_syntax([""], 4) == [""]
