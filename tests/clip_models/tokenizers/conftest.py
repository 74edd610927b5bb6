import pytest

from tests.support import tokenizers as small


@pytest.fixture(scope="session")
def wordpiece(tmp_path_factory):
    pytest.importorskip("transformers")
    return small.make_wordpiece(tmp_path_factory.mktemp("wordpiece"))


@pytest.fixture(scope="session")
def byte_bpe(tmp_path_factory):
    pytest.importorskip("transformers")
    return small.make_byte_bpe(tmp_path_factory.mktemp("byte_bpe"))


@pytest.fixture(scope="session")
def nllb(tmp_path_factory):
    pytest.importorskip("transformers")
    return small.make_nllb(tmp_path_factory.mktemp("nllb"))


@pytest.fixture(scope="session")
def siglip_model(tmp_path_factory):
    pytest.importorskip("sentencepiece")
    return small.make_sentencepiece(tmp_path_factory.mktemp("siglip") / "spiece.model")


@pytest.fixture(scope="session")
def tiktoken_file(tmp_path_factory):
    pytest.importorskip("tiktoken")
    return small.make_tiktoken(tmp_path_factory.mktemp("tiktoken") / "small.tiktoken")
