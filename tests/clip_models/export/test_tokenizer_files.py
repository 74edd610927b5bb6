"""The tokenizer.json beside an export against the tokenizer itself."""

import pytest
from tokenizers import Tokenizer as FastTokenizer
from transformers import AutoTokenizer

from clip_models import ClipModelsError
from clip_models.export.tokenizer_files import write_tokenizer
from clip_models.tokenizers.clip_bpe import ClipTokenizer
from clip_models.tokenizers.hf import HFTokenizer
from clip_models.tokenizers.sentencepiece import SigLipTokenizer
from clip_models.tokenizers.tiktoken import TikTokenTokenizer
from tests.support import tokenizers as made_up

CAPTIONS = [
    "a photo of a cat",
    "Hello  World, it's 2024! don't",
    "naïve café – “quotes” it’s 日本語 😀 a_b_c",
    "decomposed e\u0301",
    "x" * 300,
    "word " * 100,
    "",
    "ÀÉÎ ßtraße İstanbul",
    "A\tB\nC  1234 12,5% #hash @home (brackets) [more] {curly} a/b\\c ~`^",
]


@pytest.mark.parametrize("clean", ["lower", "whitespace", "whitespace_underscore", "canonicalize"])
@pytest.mark.parametrize("length", [77, 16])
def test_ids_are_the_tokenizers(tmp_path, clean, length):
    tokenizer = ClipTokenizer(length, clean=clean)
    assert write_tokenizer(tmp_path, tokenizer) == ["tokenizer.json", "tokenizer_config.json"]
    fast = FastTokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for caption in CAPTIONS:
        assert fast.encode(caption).ids == tokenizer.encode_numpy(caption)[0].tolist(), caption


def test_transformers_takes_it_for_clips(tmp_path):
    tokenizer = ClipTokenizer(77)
    write_tokenizer(tmp_path, tokenizer)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.model_max_length == 77
    assert theirs("a photo of a cat").input_ids == [49406, *tokenizer.encode("a photo of a cat"), 49407]


@pytest.mark.parametrize("kind", ["hf", "clips", "clipa", "nllb", "sentencepiece", "siglip2", "tiktoken"])
def test_other_kinds_are_built_again_from_their_files(tmp_path, kind):
    place, out = tmp_path / "from", tmp_path / "out"
    out.mkdir()
    made, again = {
        "hf": lambda: (HFTokenizer(made_up.make_byte_bpe(place), 16), lambda _: HFTokenizer(out, 16)),
        "clips": lambda: (
            HFTokenizer(made_up.make_byte_bpe(place), 16, mode="clips"), lambda _: HFTokenizer(out, 16, mode="clips")
        ),
        "clipa": lambda: (
            HFTokenizer(made_up.make_wordpiece(place), 16, strip_sep_token=True),
            lambda _: HFTokenizer(out, 16, strip_sep_token=True),
        ),
        "nllb": lambda: (
            HFTokenizer(made_up.make_nllb(place), 16, language="deu_Latn"),
            lambda _: HFTokenizer(out, 16, language="deu_Latn"),
        ),
        # transformers reads what stands beside the model
        "sentencepiece": lambda: (
            SigLipTokenizer(made_up.make_sentencepiece(place), 16), lambda _: HFTokenizer(out, 16, "canonicalize")
        ),
        "siglip2": lambda: (
            SigLipTokenizer(made_up.make_sentencepiece(place, gemma=True), 16),
            lambda names: SigLipTokenizer(out / names[0], 16),
        ),
        "tiktoken": lambda: (
            TikTokenTokenizer(made_up.make_tiktoken(place.with_suffix(".tiktoken")), 16, eos_id=300, pad_id=301),
            lambda names: TikTokenTokenizer(out / names[0], 16, eos_id=300, pad_id=301),
        ),
    }[kind]()  # fmt: skip
    expected = made.encode_numpy(made_up.CAPTIONS)
    names = write_tokenizer(out, made)
    if place.exists():
        place.rename(tmp_path / "gone")
    assert {path.name for path in out.iterdir()} == set(names)
    assert again(names).encode_numpy(made_up.CAPTIONS).tolist() == expected.tolist()


def test_another_language_than_the_saved_one_is_refused(tmp_path):
    (tmp_path / "out").mkdir()
    write_tokenizer(tmp_path / "out", HFTokenizer(made_up.make_nllb(tmp_path / "nllb"), 16, language="deu_Latn"))
    with pytest.raises(ClipModelsError, match=r"'fra_Latn'.* marks no language"):
        HFTokenizer(tmp_path / "out", 16, language="fra_Latn")
