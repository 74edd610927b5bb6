import sys

import pytest

from clip_models import ClipModelsError
from clip_models.tokenizers.sentencepiece import SigLipTokenizer
from tests.support.hub import Hub
from tests.support.tokenizers import make_sentencepiece


def test_siglip_pads_with_its_end_token_and_siglip_2_with_its_own(siglip_model, tmp_path):
    one = SigLipTokenizer(siglip_model, 12)
    two = SigLipTokenizer(make_sentencepiece(tmp_path / "gemma.model", gemma=True), 12)
    assert (one.eot_token_id, one.pad_token_id) == (1, 1)
    assert (two.eot_token_id, two.pad_token_id) == (1, 0)
    assert one.encode_numpy("")[0].tolist() == [1] * 12
    assert two.encode_numpy("")[0].tolist() == [1] + [0] * 11
    assert two.decode(two.encode("ünknown 漢")) == "ünknown 漢"


def test_case_and_punctuation_change_nothing(siglip_model):
    tokenizer = SigLipTokenizer(siglip_model)
    assert (tokenizer("A photo, of a_CAT!") == tokenizer("a photo of a cat")).all()
    assert tokenizer("a cat").shape == (1, 64)


def test_what_was_saved_gives_the_same_ids(siglip_model, tmp_path):
    ours = SigLipTokenizer(siglip_model, 12)
    name, *_ = ours.save(tmp_path)
    assert (SigLipTokenizer(tmp_path / name, 12)("two dogs") == ours("two dogs")).all()


def test_a_model_with_a_name_comes_from_the_hub(siglip_model, tmp_path, monkeypatch):
    with Hub().running() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
        server.add("google/siglip-base-patch16-224", {"spiece.model": siglip_model.read_bytes()})
        named = SigLipTokenizer("c4-en", cache_dir=tmp_path)
    assert (named("two dogs") == SigLipTokenizer(siglip_model)("two dogs")).all()


def test_bad_files_are_refused(tmp_path, monkeypatch, siglip_model):
    (tmp_path / "bad.model").write_bytes(b"not a model")
    with pytest.raises(ClipModelsError, match="is not a sentencepiece model"):
        SigLipTokenizer(tmp_path / "bad.model")
    with pytest.raises(ClipModelsError, match=r"no sentencepiece model at .*; give a file or c4-en, mc4, gemma"):
        SigLipTokenizer(tmp_path / "none.model")
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(ClipModelsError, match=r"pip install 'clip-models\[hf\]'"):
        SigLipTokenizer(siglip_model)
