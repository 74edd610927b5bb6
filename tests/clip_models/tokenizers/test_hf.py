import json
import logging
import sys

import pytest

from clip_models import ClipModelsError
from clip_models.tokenizers.hf import HFTokenizer
from clip_models.weights import download
from tests.support.hub import Hub

TEXTS = ["a photo of a cat", "", "the blue square " * 20]


@pytest.fixture
def server(monkeypatch):
    with Hub().running() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
        monkeypatch.setattr(download, "TIMEOUT_S", 0.5)
        yield server


def refusal(call, *args, **options) -> str:
    with pytest.raises(ClipModelsError) as caught:
        call(*args, **options)
    return str(caught.value)


def test_rows_are_padded_on_the_right_whatever_the_files_say(tmp_path):
    from tests.support.tokenizers import make_byte_bpe

    folder = make_byte_bpe(tmp_path, padding_side="left", truncation_side="left", model_max_length=4)
    row = HFTokenizer(folder, 12).encode_numpy("a cat")[0].tolist()
    assert row[0] == 0
    assert row[-1] == 1
    assert HFTokenizer(folder, 6).encode_numpy(TEXTS[2])[0].tolist() == [*HFTokenizer(folder, 40)(TEXTS[2])[0][:5], 2]


def test_the_separator_becomes_padding(wordpiece):
    plain, stripped = HFTokenizer(wordpiece, 12), HFTokenizer(wordpiece, 12, strip_sep_token=True)
    ids = plain.encode_numpy(TEXTS)
    ids[ids == plain.eot_token_id] = 0
    assert (stripped.encode_numpy(TEXTS) == ids).all()
    assert stripped.eot_token_id is None


def test_clips_puts_the_class_token_last(byte_bpe):
    row = HFTokenizer(byte_bpe, 12, mode="clips").encode_numpy("a cat")[0].tolist()
    assert (row[0], row[-1]) == (0, 0)  # this tokenizer's start and class token are one
    assert row.index(2) < 11


def test_a_folder_a_file_and_what_was_saved_give_the_same_ids(byte_bpe, tmp_path):
    ours = HFTokenizer(byte_bpe, 12, clean="lower")
    expected = ours.encode_numpy(TEXTS)
    lone = tmp_path / "lone.json"
    lone.write_bytes((byte_bpe / "tokenizer.json").read_bytes())
    assert "tokenizer.json" in ours.save(tmp_path)
    for source in (byte_bpe / "tokenizer.json", lone, tmp_path):
        again = HFTokenizer(source, 12, clean="lower")
        assert (again.encode_numpy(TEXTS) == expected).all()
        assert (again.pad_token_id, again.eot_token_id) == (1, 2)


def test_the_hub_is_asked_once(server, byte_bpe, tmp_path):
    server.add("org/small", {path.name: path.read_bytes() for path in byte_bpe.iterdir()})
    expected = HFTokenizer(byte_bpe, 12).encode_numpy(TEXTS)
    assert (HFTokenizer("org/small", 12, cache_dir=tmp_path).encode_numpy(TEXTS) == expected).all()
    server.requests.clear()
    assert (HFTokenizer("org/small", 12, cache_dir=tmp_path).encode_numpy(TEXTS) == expected).all()
    assert server.requests == []


def test_a_repository_without_a_tokenizer_is_refused(server, tmp_path, caplog):
    server.add("org/empty", {"README.md": b"nothing"})
    with caplog.at_level(logging.WARNING):
        assert "no tokenizer can be read from 'org/empty'" in refusal(HFTokenizer, "org/empty", cache_dir=tmp_path)
    assert "there is no repository org/none" in refusal(HFTokenizer, "org/none", cache_dir=tmp_path)


def test_a_hub_that_does_not_answer_is_one_clear_error(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    message = refusal(HFTokenizer, "org/small", cache_dir=tmp_path)
    assert "http://127.0.0.1:9 does not answer" in message
    assert "\n" not in message


def test_bad_files_and_names_are_refused(tmp_path, byte_bpe):
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0", "model": ')
    assert "is not a tokenizer.json" in refusal(HFTokenizer, tmp_path / "tokenizer.json")
    assert "no tokenizer can be read from" in refusal(HFTokenizer, tmp_path)
    assert "there is no tokenizer at" in refusal(HFTokenizer, tmp_path / "nothing")
    assert "marks no language" in refusal(HFTokenizer, byte_bpe, language="eng_Latn")


def test_a_tokenizer_without_padding_is_refused(tmp_path, byte_bpe):
    (tmp_path / "tokenizer.json").write_bytes((byte_bpe / "tokenizer.json").read_bytes())
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    assert "has no padding token" in refusal(HFTokenizer, tmp_path)


def test_what_an_option_needs_is_named(wordpiece, nllb):
    assert "tokenizer.mode 'clips' needs tokens for start, end and class" in refusal(
        HFTokenizer, wordpiece, mode="clips"
    )
    assert "tokenizer.language 'cat' is not one of" in refusal(HFTokenizer, nllb, language="cat")


def test_the_extra_is_named(monkeypatch, byte_bpe):
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert "pip install 'clip-models[hf]'" in refusal(HFTokenizer, byte_bpe)
