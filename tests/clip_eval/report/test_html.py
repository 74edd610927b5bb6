from html.parser import HTMLParser

import pytest

from clip_eval.report.html import Html, bars, duration, fill, foreign, join, percent, table


class Texts(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)

    def handle_data(self, data):
        self.text += data


def parsed(markup: str) -> Texts:
    texts = Texts()
    texts.feed(markup)
    return texts


HOSTILE = '<script>alert("1")</script>&amp;\'" onload=x {0} {name}'


def test_every_inserted_string_is_text():
    for markup in (
        Html.escape(HOSTILE),
        fill("{}", HOSTILE),
        join([HOSTILE]),
        foreign(HOSTILE),
        table([HOSTILE], [[HOSTILE]]),
    ):
        found = parsed(markup)
        assert "script" not in found.tags
        assert HOSTILE in found.text


def test_attributes_cannot_be_left():
    found = parsed(fill('<i title="{}">x</i>', '"><script>'))
    assert found.tags == ["i"]


def test_markup_is_inserted_as_it_is_once():
    assert fill("<p>{}</p>", fill("<b>{}</b>", "<")) == "<p><b>&lt;</b></p>"
    assert isinstance(join(["a", Html("<br>")]), Html)


def test_characters_that_no_page_should_hold_are_replaced():
    assert Html.escape("a\x00b\ud800c\x1b[31m\u009f") == "a\ufffdb\ufffdc\ufffd[31m\ufffd"
    assert Html.escape("Grüße 日本 🙂\n\t") == "Grüße 日本 🙂\n\t"


def test_long_text_is_cut_and_kept_in_the_title():
    cut = foreign("word " * 100, 20)
    assert parsed(cut).text == "word word word word…"
    assert 'title="word word' in cut


def test_bars_never_leave_their_track():
    assert "width:100.00%" in bars([("a", 7, "7")], whole=5)
    assert "width:0.00%" in bars([("a", 0, "0"), ("b", 0, "0")])


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *[(0, "0.0 s"), (0.04, "< 0.1 s"), (59.94, "59.9 s"), (59.96, "1 min 00 s"), (61, "1 min 01 s")],
        *[(3599.6, "1 h 00 min"), (7199, "2 h 00 min"), (3600 * 26, "26 h 00 min")],
    ],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("share", "digits", "text"),
    [
        *[(0, 1, "0.0 %"), (1, 1, "100.0 %"), (0.9996, 1, "> 99.9 %"), (0.0001, 1, "< 0.1 %"), (0.0005, 1, "0.1 %")],
        *[(0.0001, 0, "< 1 %"), (0.996, 0, "> 99 %"), (0.5, 0, "50 %"), (1e-9, 2, "< 0.01 %"), (0.034, 1, "3.4 %")],
    ],
)
def test_only_nothing_is_zero_and_only_all_is_hundred(share, digits, text):
    assert percent(share, digits) == text
