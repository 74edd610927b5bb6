"""The sample id and the one spelling of a URL behind it."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clip_data.uid import canonical_url, uid


@pytest.mark.parametrize(
    ("url", "canonical"),
    [
        ("http://Example.COM/A?b=C#part", "http://example.com/A?b=C"),
        ("HTTPS://example.com:443", "https://example.com/"),
        ("http://example.com:80/", "http://example.com/"),
        ("https://example.com:80/", "https://example.com:80/"),
        ("http://Me:Secret@Example.com/x", "http://Me:Secret@example.com/x"),
        ("http://[2001:DB8::1]:8080/x", "http://[2001:db8::1]:8080/x"),
        ("  http://example.com/a%2Fb  ", "http://example.com/a%2Fb"),
        ("http://example.com/?q=", "http://example.com/?q="),
        ("not a url", "not a url"),
        ("http://example.com:port/", "http://example.com:port/"),
        ("http://[half/", "http://[half/"),
        ("", ""),
    ],
)
def test_urls_of_one_resource_have_one_spelling(url, canonical):
    assert canonical_url(url) == canonical


def test_the_id_is_the_documented_hash():
    expected = hashlib.blake2b(b"http://h/1\0a dog", digest_size=16).digest()
    assert uid("HTTP://H/1", "a dog") == expected
    assert uid("http://h/1", "another dog") != expected
    assert uid(None, None) == hashlib.blake2b(b"\0", digest_size=16).digest()


URLS = st.from_regex(r"(HTTP|https|ftp)://[a-zA-Z0-9.:@\[\]%-]{0,12}[/?#]?.{0,8}", fullmatch=True)


@given(st.text() | URLS, st.text())
def test_every_text_has_an_id_and_spelling_settles_at_once(url, caption):
    assert len(uid(url, caption)) == 16
    assert canonical_url(canonical_url(url)) == canonical_url(url)
    assert uid(canonical_url(url), caption) == uid(url, caption)


def test_lone_surrogates_have_an_id():
    assert len(uid("http://h/\ud800", "\udfff")) == 16
