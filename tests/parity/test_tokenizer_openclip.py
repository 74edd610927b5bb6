"""Token ids against OpenCLIP's SimpleTokenizer."""

import random

import numpy as np
import pytest

from clip_models import ClipTokenizer
from clip_models.tokenizers import clean_caption

open_clip = pytest.importorskip("open_clip")
pytestmark = pytest.mark.parity

CORPUS = [
    "",
    " ",
    "a",
    "\n\t a  photo\r\nof   a\x0bcat \x0c",
    "A Photo Of A CAT!",
    "it's, they'll, we've I'M don't 'S 'ſ o'clock ''",
    "2024-06-01 10:30pm £3.50 1/2 ½ ² ٣ 四",
    "caf\u00e9 cafe\u0301 na\u00efve \u00c5ngstr\u00f6m \u212b stra\u00dfe",
    "schÃ¶n â€œquotedâ€\x9d donâ€™t",
    "&amp;amp; &lt;b&gt;bold&lt;/b&gt; &eacute; &#128512; &#xD800; &nosuch; <b>&amp;</b>",
    "Tom & Jerry &amp Co <br/>",
    "\u201ccurly\u201d \u2018quotes\u2019 \u2026 \u2014 \u00a0 \u3000 \u200b \ufeff ﬁ ﬂ ＦＵＬＬ width",
    "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea ☕️ ❤",
    "漢字かな交じり文の説明 ภาษาไทยไม่มีช่องว่าง العربية עברית हिन्दी",
    "ΟΔΟΣ ὈΔΥΣΣΕΎΣ Σ İstanbul ı DŽ",
    "<start_of_text> a <end_of_text> <START_OF_TEXT> <|endoftext|> </w>",
    "control \x00\x07\x1b[31mred\x1b[0m \x1c\x1d\x7f \x85 end",
    "lone surrogate \ud800 and \udfff",
    "https://example.org/a?b=c&d=e#f user@example.org C:\\dir\\file.txt __init__ #tag @me",
    "!!!???...,,,;;;:::---___===+++***///\\\\|||~~~```^^^%%%$$$",
    "supercalifragilisticexpialidocious" * 4,
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" * 2,
    "abcabcabdabcabdabc" * 20,
    "a very long caption with many words " * 30,
    " ".join(["exactly"] * 75),
    " ".join(["exactly"] * 76),
]
ALPHABETS = [
    "abcdefghijklmnopqrstuvwxyz ",
    "aabbnnot '",
    "ABCabc019 .,'&;<>#!-_\n\t",
    "äöüßéèñçøåœ’“”–… ",
    "漢字かなカナ한글 กขค عربي ☕🎉👍🏽‍️",
    "".join(map(chr, range(0x20, 0x250))),
    "".join(map(chr, range(0x0, 0x100))),
]


def make_random_captions(count: int) -> list[str]:
    rng = random.Random(0)
    return ["".join(rng.choices(rng.choice(ALPHABETS), k=rng.randint(1, 120))) for _ in range(count)]


@pytest.mark.parametrize("clean", ["lower", "whitespace", "canonicalize"])
def test_ids_are_identical(clean):
    reference = open_clip.SimpleTokenizer(clean=clean)
    ours = ClipTokenizer(clean=clean)
    captions = CORPUS + make_random_captions(2000)
    expected = reference(captions).numpy()
    ids = ours.encode_numpy(captions)
    different = [captions[row] for row in np.flatnonzero((ids != expected).any(axis=1))]
    assert different == []
    # Again, from the remembered pieces.
    assert (ours.encode_numpy(captions) == expected).all()
    for caption in captions[:500]:
        assert ours.encode(caption) == reference.encode(caption)


@pytest.mark.parametrize("clean", ["lower", "whitespace", "canonicalize"])
def test_cleaning_is_identical(clean):
    reference = open_clip.tokenizer.get_clean_fn(clean)
    captions = CORPUS + make_random_captions(1000)
    assert [clean_caption(caption, clean) for caption in captions] == [reference(caption) for caption in captions]


@pytest.mark.parametrize("context_length", [3, 8, 32])
def test_truncation_is_identical(context_length):
    reference = open_clip.SimpleTokenizer(context_length=context_length)
    ours = ClipTokenizer(context_length)
    assert (ours(CORPUS) == reference(CORPUS)).all()
    cut = sum(len(reference.encode(caption)) > context_length - 2 for caption in CORPUS)
    assert ours.count_truncated(CORPUS) == cut > 0


def test_decoding_is_identical():
    reference, ours = open_clip.SimpleTokenizer(), ClipTokenizer()
    assert (ours.vocab_size, ours.sot_token_id, ours.eot_token_id) == (
        reference.vocab_size,
        reference.sot_token_id,
        reference.eot_token_id,
    )
    for row in reference(CORPUS):
        assert ours.decode(row) == reference.decode(row.tolist())
    for token in range(0, ours.vocab_size, 97):
        assert ours.decode([token]) == reference.decode([token])
