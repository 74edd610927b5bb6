"""What holds of every tokenizer, whatever library it comes from."""

import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch

from clip_models import ClipModelsError, ClipTokenizer
from clip_models.tokenizers.hf import HFTokenizer
from clip_models.tokenizers.sentencepiece import SigLipTokenizer
from clip_models.tokenizers.tiktoken import TikTokenTokenizer

KINDS = ["clip-bpe", "hf", "clips", "clipa", "nllb", "sentencepiece", "tiktoken"]
LONG = "a cat in the park " * 30


@pytest.fixture(params=KINDS)
def tokenizer(request):
    def fixture(name):
        return request.getfixturevalue(name)

    match request.param:
        case "clip-bpe":
            return ClipTokenizer(16)
        case "hf":
            return HFTokenizer(fixture("byte_bpe"), 16)
        case "clips":
            return HFTokenizer(fixture("byte_bpe"), 16, mode="clips")
        case "clipa":
            return HFTokenizer(fixture("wordpiece"), 16, strip_sep_token=True)
        case "nllb":
            return HFTokenizer(fixture("nllb"), 16, language="deu_Latn")
        case "sentencepiece":
            return SigLipTokenizer(fixture("siglip_model"), 16)
        case _:
            return TikTokenTokenizer(fixture("tiktoken_file"), 16, eos_id=300, pad_id=301, bos_id=302)


def test_rows(tokenizer):
    texts = ["a cat", "", LONG]
    ids = tokenizer.encode_numpy(texts)
    assert (ids.shape, ids.dtype) == ((3, 16), np.int64)
    assert 0 <= ids.min() <= ids.max() < tokenizer.vocab_size
    assert torch.equal(tokenizer(texts), torch.from_numpy(ids))
    assert tokenizer("a cat").shape == (1, 16)
    assert tokenizer([]).shape == (0, 16)
    assert tokenizer(texts, context_length=9).shape == (3, 9)
    assert (tokenizer.encode_numpy(texts) == ids).all()  # another length in between leaves nothing behind


def test_a_long_caption_keeps_its_end_token(tokenizer):
    ids = tokenizer.encode_numpy([LONG, "a cat"])
    if tokenizer.eot_token_id is not None:
        assert (ids == tokenizer.eot_token_id).any(axis=1).all()
    assert ids[0, -2] != tokenizer.pad_token_id
    assert ids[1, -2] == tokenizer.pad_token_id


def test_counts(tokenizer):
    assert tokenizer.count_truncated(["a cat", LONG, "", LONG]) == 2
    assert tokenizer.count_truncated("a cat") == 0
    needed = tokenizer.count_tokens("a cat in a park")
    assert tokenizer.count_truncated("a cat in a park", context_length=needed) == 0
    assert tokenizer.count_truncated("a cat in a park", context_length=needed - 1) == 1


def test_decoding(tokenizer):
    assert tokenizer.decode(tokenizer.encode("a cat in the park")).split() == ["a", "cat", "in", "the", "park"]
    assert "a cat" in tokenizer.decode(tokenizer("a cat")[0])
    with pytest.raises(ClipModelsError, match="1000000 is not a token id"):
        tokenizer.decode([5, 1_000_000])


@pytest.mark.parametrize("bad", [None, 3.5, b"bytes"])
def test_captions_that_are_no_strings_are_named(tokenizer, bad):
    for call in (tokenizer, tokenizer.encode_numpy, tokenizer.count_truncated):
        with pytest.raises(ClipModelsError, match=r"caption 1 is .*captions are strings"):
            call(["fine", bad])
    with pytest.raises(ClipModelsError, match="captions are strings"):
        tokenizer.encode(bad)


def test_lone_surrogates_do_not_end_a_run(tokenizer):
    assert tokenizer(["a \ud800 cat", "a cat"]).shape == (2, 16)


def test_it_travels_to_processes_that_import_neither_torch_nor_transformers(tokenizer):
    texts = ["a cat", "", LONG]
    expected = tokenizer.encode_numpy(texts)
    code = (
        "import pickle, sys\n"
        f"ids = pickle.load(sys.stdin.buffer).encode_numpy({texts!r})\n"
        f"assert ids.tolist() == {expected.tolist()!r}\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], input=pickle.dumps(tokenizer), check=True)


def test_contexts_without_room_are_refused(tokenizer):
    with pytest.raises(ClipModelsError, match="context_length 2 has no room for start, a token and end"):
        tokenizer("a", context_length=2)
