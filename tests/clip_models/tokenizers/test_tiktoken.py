import sys

import pytest

from clip_models import ClipModelsError
from clip_models.tokenizers.tiktoken import TikTokenTokenizer

IDS = {"eos_id": 300, "pad_id": 301, "bos_id": 302}


def test_control_ids_stand_above_the_vocabulary(tiktoken_file):
    tokenizer = TikTokenTokenizer(tiktoken_file, 8, **IDS)
    photo, cat = 256 + 6, 256 + 7
    assert tokenizer.encode_numpy("a photo cat")[0].tolist() == [302, 97, photo, cat, 300, 301, 301, 301]
    assert tokenizer.vocab_size == 303
    assert tokenizer.decode([302, 97, photo, 300, 301]) == "<|bos|>a photo<|eos|><|pad|>"
    assert TikTokenTokenizer(tiktoken_file, 8, eos_id=300, pad_id=301).encode_numpy("a")[0, :2].tolist() == [97, 300]


def test_names_of_control_tokens_in_a_caption_are_text(tiktoken_file):
    tokenizer = TikTokenTokenizer(tiktoken_file, 32, **IDS)
    assert max(tokenizer.encode("<|endoftext|> <|eos|>")) < 264


def test_what_was_saved_gives_the_same_ids(tiktoken_file, tmp_path):
    ours = TikTokenTokenizer(tiktoken_file, 12, **IDS)
    (name,) = ours.save(tmp_path)
    assert (TikTokenTokenizer(tmp_path / name, 12, **IDS)("a photo") == ours("a photo")).all()


def test_bad_ids_and_files_are_refused(tiktoken_file, tmp_path):
    def refusal(name, **ids) -> str:
        with pytest.raises(ClipModelsError) as caught:
            TikTokenTokenizer(name, 12, **(IDS | ids))
        return str(caught.value)

    assert "id 263 of a control token is in the vocabulary" in refusal(tiktoken_file, pad_id=263)
    assert "text.pad_id and text.bos_id from 264 on" in refusal(tiktoken_file, pad_id=263)
    assert "must differ" in refusal(tiktoken_file, pad_id=300)
    (tmp_path / "bad.tiktoken").write_text("not a line of it\n")
    assert "is not a .tiktoken file" in refusal(tmp_path / "bad.tiktoken")
    (tmp_path / "short.tiktoken").write_bytes(b"\n".join(tiktoken_file.read_bytes().splitlines()[5:]))
    assert "is damaged" in refusal(tmp_path / "short.tiktoken")
    assert "cannot be read" in refusal(tmp_path / "none.tiktoken")
    assert "tiktoken has no encoding 'r50k'; choose from" in refusal("r50k")
    (tmp_path / "cl100k_base.tiktoken").write_bytes(tiktoken_file.read_bytes())
    assert "name it 'cl100k_base'" in refusal(tmp_path / "cl100k_base.tiktoken")


def test_without_a_network_the_encoding_cannot_be_had(monkeypatch, tmp_path):
    tiktoken = pytest.importorskip("tiktoken")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setattr(tiktoken.registry, "ENCODINGS", {})
    with pytest.raises(ClipModelsError, match=r"cannot fetch its encoding 'r50k_base' .*r50k_base\.tiktoken"):
        TikTokenTokenizer("r50k_base", **IDS)


def test_the_extra_is_named(monkeypatch, tiktoken_file):
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    with pytest.raises(ClipModelsError, match=r"pip install 'clip-models\[tiktoken\]'"):
        TikTokenTokenizer(tiktoken_file, **IDS)
