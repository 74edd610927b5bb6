"""clip_data.score.caption against plain Python."""

import sys
import unicodedata

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_data.score import Batch, CaptionScorer


def score(captions):
    return CaptionScorer().score(Batch(samples=pa.table({"caption": pa.array(captions, pa.string())}), images=()))


def expected(caption):
    words = caption.split()
    visible = "".join(words)

    def share(part, whole):
        return pytest.approx(part / whole if whole else 0, rel=1e-6)

    return {
        "chars": len(caption),
        "words": len(words),
        "mean_word_length": share(len(visible), len(words)),
        "letter_share": share(sum(unicodedata.category(char)[0] in "LM" for char in visible), len(visible)),
        "digit_share": share(sum(unicodedata.category(char) == "Nd" for char in visible), len(visible)),
        "non_ascii_share": share(sum(ord(char) > 127 for char in visible), len(visible)),
        "repeated_word_share": share(len(words) - len({word.lower() for word in words}), len(words)),
    }


CHARACTERS = st.sampled_from(list("abAB09 ,.-é漢\u00a0\u3000\t\nनि"))


@given(st.lists(st.text(CHARACTERS, max_size=30), min_size=1, max_size=8))
@settings(max_examples=100, deadline=None)
def test_statistics_are_those_of_plain_python(captions):
    rows = score(captions).to_pylist()
    for caption, row in zip(captions, rows, strict=True):
        assert {name: row[name] for name in expected(caption)} == expected(caption), caption


def test_every_kind_of_whitespace_separates_words():
    spaces = [char for char in map(chr, range(sys.maxunicode + 1)) if char.isspace()]
    captions = [f"{space}a{space}{space}b{space}" for space in spaces]
    assert score(captions)["words"].to_pylist() == [2] * len(spaces)


@pytest.mark.parametrize(
    ("caption", "has_url"),
    [
        ("see https://a.test/x", True),
        ("HTTP://A.TEST", True),
        ("(www.a.test)", True),
        ("a site like a.test", False),
        ("https:// alone", False),
        ("awww.cute", False),
    ],
)
def test_has_url(caption, has_url):
    assert score([caption])["has_url"].to_pylist() == [has_url]


def test_a_missing_caption_counts_as_empty():
    missing, empty, blank = score([None, "", " \u3000 "]).to_pylist()
    assert missing == empty == {**blank, "chars": 0}
    assert set(missing.values()) == {0}


def test_the_columns_of_a_row_do_not_depend_on_its_neighbours():
    captions = ["a red cube", "", "two two blue balls", "x"]
    together = score(captions).to_pylist()
    assert together == [row for caption in captions for row in score([caption]).to_pylist()]
