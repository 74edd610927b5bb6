import pickle
import random
import sys
import types

import numpy as np
import pytest
import torch

import clip_models
from clip_models import ClipModelsError, ClipTokenizer
from clip_models.tokenizers import clip_bpe as tokenizer_module


@pytest.fixture(scope="module")
def tokenizer():
    return ClipTokenizer()


def test_known_ids(tokenizer):
    # From the example in OpenAI's CLIP repository.
    ids = tokenizer.encode_numpy("a photo of a cat")
    assert ids.dtype == np.int64
    assert ids.shape == (1, 77)
    assert ids[0, :8].tolist() == [49406, 320, 1125, 539, 320, 2368, 49407, 0]
    assert not ids[0, 8:].any()


def test_call_gives_the_same_as_a_long_tensor(tokenizer):
    texts = ["a photo of a cat", "", "word " * 100]
    ids = tokenizer(texts)
    assert ids.dtype == torch.int64
    assert (ids.numpy() == tokenizer.encode_numpy(texts)).all()
    assert tokenizer("a cat").shape == (1, 77)
    assert tokenizer(texts, context_length=16).shape == (3, 16)
    assert tokenizer([]).shape == (0, 77)


def test_truncation_keeps_the_end_token(tokenizer):
    ids = tokenizer.encode_numpy("cat " * 200)[0]
    assert ids[0] == tokenizer.sot_token_id
    assert ids[-1] == tokenizer.eot_token_id
    assert set(ids[1:-1].tolist()) == {2368}


def test_truncated_captions_are_counted():
    tokenizer = ClipTokenizer(context_length=10)
    assert tokenizer.count_truncated(["cat " * 8, "cat " * 9, "", "one-two-three, four, five"]) == 2
    assert tokenizer.count_truncated("cat " * 8) == 0
    assert tokenizer.count_truncated("cat " * 8, context_length=9) == 1


def test_decode_is_the_inverse_of_encode(tokenizer):
    text = "a photo of a cat and two dogs in düsseldorf 漢字 🎉"
    assert tokenizer.decode(tokenizer.encode(text)).strip() == text
    assert tokenizer.decode(tokenizer("a cat", context_length=4)[0]) == "<start_of_text>a cat <end_of_text>"


@pytest.mark.parametrize("bad", [49408, -1])
def test_decode_refuses_what_is_no_id(tokenizer, bad):
    with pytest.raises(ClipModelsError, match=f"{bad} is not a token id; ids go from 0 to 49407"):
        tokenizer.decode([320, bad])


@pytest.mark.parametrize("bad", [None, 3.5, b"bytes", float("nan")])
def test_captions_that_are_no_strings_are_named(tokenizer, bad):
    with pytest.raises(ClipModelsError, match=r"caption 1 is .*captions are strings"):
        tokenizer.encode_numpy(["fine", bad])
    with pytest.raises(ClipModelsError, match="caption 1 is"):
        tokenizer.count_truncated(["fine", bad])


def test_contexts_without_room_are_refused(tokenizer):
    for build in (
        lambda: ClipTokenizer(2),
        lambda: tokenizer("a", context_length=0),
        lambda: clip_models.get_tokenizer("ViT-B-32", context_length=0),
    ):
        with pytest.raises(ClipModelsError, match="no room for start, a token and end"):
            build()


def test_underscores_are_spaces_where_wanted():
    spaced = ClipTokenizer(clean="whitespace")("A red_Car")
    assert not torch.equal(spaced, ClipTokenizer(clean="whitespace")("A red Car"))
    assert torch.equal(
        ClipTokenizer(clean="whitespace_underscore")("A red_Car"), ClipTokenizer(clean="whitespace")("A red Car")
    )
    assert not torch.equal(ClipTokenizer(clean="whitespace_underscore")("A red_Car"), ClipTokenizer()("a red car"))


def test_unknown_cleanings_and_reductions_are_refused():
    for clean in ("upper", ""):
        with pytest.raises(ClipModelsError, match=f"'{clean}' is unknown; choose from lower, whitespace"):
            ClipTokenizer(clean=clean)
    with pytest.raises(ClipModelsError, match='is unknown; choose from "", simple, random'):
        ClipTokenizer(reduction="middle")


@pytest.mark.parametrize("reduction", ["simple", "random", "shuffle"])
def test_reductions_keep_start_end_and_tokens_of_the_caption(reduction):
    tokenizer = ClipTokenizer(context_length=8, reduction=reduction)
    text = "one two three four five six seven eight nine ten"
    whole = tokenizer.encode(text)
    rows = tokenizer.encode_numpy([text] * 20)
    assert (rows[:, 0] == tokenizer.sot_token_id).all()
    assert (rows[:, -1] == tokenizer.eot_token_id).all()
    assert len(np.unique(rows, axis=0)) > 2
    assert all(set(row[1:-1].tolist()) <= set(whole) for row in rows)
    if reduction != "shuffle":
        assert all([whole.index(i) for i in row[1:-1]] == sorted(whole.index(i) for i in row[1:-1]) for row in rows)
    assert tokenizer.count_truncated([text, "one two"]) == 1
    assert (tokenizer.encode_numpy("one two") == ClipTokenizer(8).encode_numpy("one two")).all()


def test_reduction_by_syntax_says_what_is_missing(monkeypatch):
    tokenizer = ClipTokenizer(context_length=8, reduction="syntax")
    monkeypatch.setitem(sys.modules, "nltk", None)
    with pytest.raises(ClipModelsError, match="pip install nltk"):
        tokenizer("a cat")

    def no_data(text):
        raise LookupError("Resource punkt_tab not found")

    stand_in = types.SimpleNamespace(tokenize=types.SimpleNamespace(word_tokenize=no_data))
    monkeypatch.setitem(sys.modules, "nltk", stand_in)
    with pytest.raises(ClipModelsError, match=r"python -m nltk\.downloader punkt punkt_tab"):
        tokenizer("a cat")


def test_get_tokenizer_takes_the_context_of_the_model():
    assert clip_models.get_tokenizer("ViT-B-32").context_length == 77
    assert clip_models.get_tokenizer("ViT-Ti-4-24").context_length == 32
    assert clip_models.get_tokenizer("ViT-Ti-4-24", context_length=16).context_length == 16
    assert clip_models.get_tokenizer(clip_models.get_model_spec("ViT-Ti-4-24")).context_length == 32


def test_pickles_small_and_works_afterwards():
    tokenizer = ClipTokenizer(context_length=20, clean="whitespace")
    texts = ["A Photo of a cat", "日本語"]
    expected = tokenizer.encode_numpy(texts)
    encode = pickle.loads(pickle.dumps(tokenizer.encode_numpy))
    assert len(pickle.dumps(tokenizer.encode_numpy)) < 300
    assert (encode(texts) == expected).all()


def test_memory_of_pieces_is_bounded(monkeypatch):
    monkeypatch.setattr(tokenizer_module, "_CACHED_PIECES", 50)
    tokenizer = ClipTokenizer()
    rng = random.Random(0)
    for _ in range(20):
        words = ["".join(rng.choices("abcdefgh", k=6)) for _ in range(20)]
        fresh = ClipTokenizer()
        assert (tokenizer.encode_numpy(words) == fresh.encode_numpy(words)).all()
        assert 0 < len(tokenizer._ids_of_piece) <= 50
    tokenizer.encode("x" * 10_000)
    assert max(map(len, tokenizer._ids_of_piece)) <= 32


@pytest.mark.timeout(20)
def test_long_text_without_spaces_is_quick(tokenizer):
    # The textbook loop takes the square of the length: minutes for this caption.
    text = "".join(random.Random(0).choices("abcdefghijklmnopqrstuvwxyzäöü", k=60_000))
    assert tokenizer.decode(tokenizer.encode(text)).strip() == text
