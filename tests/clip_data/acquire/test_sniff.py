"""Content sniffing: what counts as SVG, and that no body can make it slow."""

import itertools
import time

import pytest

from clip_data.acquire.sniff import sniff

PIECES = [
    b"<!-- -->",
    b"<!---->",
    b"<!--",
    b"-->",
    b"<?xml>",
    b"<?xml",
    b"<!doctype svg>",
    b"<!doctype svg",
    b" ",
    b"\n",
    b">",
]


@pytest.mark.parametrize(
    "body",
    [
        b"<svg>",
        b"  \xef\xbb\xbf <?xml version='1.0'?>\n<!-- a > b --> <!DOCTYPE svg PUBLIC 'x'>\n<SVG width='1'>",
        b"<!-- <html> --><!-- --><svg\n>",
    ],
)
def test_svg_is_an_image_of_another_format(body):
    assert sniff(body) == "other"


@pytest.mark.parametrize("body", [b"<svgx>", b"<!-- <svg>", b"<!-- <svg> -->", b"<html><svg>", b"<?xml <svg", b""])
def test_other_text_is_no_image(body):
    assert sniff(body) is None


def test_no_body_makes_it_slow():
    assert sniff(b"<!-- -->" * 60 + b"<html>") is None  # took for ever
    started = time.process_time()
    for pieces in itertools.product(PIECES, repeat=3):
        assert sniff((b"".join(pieces) * 4096)[:4090] + b"<html>") is None
    assert time.process_time() - started < 5
