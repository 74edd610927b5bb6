"""Which addresses are refused, however they are spelled and wherever they come from."""

import asyncio
import socket
from ipaddress import ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_data.acquire import AcquireConfig, Code, Fetcher, Rejected, guard
from clip_data.acquire.guard import is_public, parse_url, socket_factory
from tests.support.hostile_server import HostileServer

PRIVATE_LITERALS = [
    "http://127.0.0.1/",
    "http://127.1/",
    "http://2130706433/",
    "http://017700000001/",
    "http://0x7f000001/",
    "http://0x7f.0.0.1/",
    "http://0177.0.0.1/",
    "http://127.0.0.1./",
    "http://127.0.0.1:22/",
    "http://①②⑦.⓪.⓪.①/",
    "http://0.0.0.0/",
    "http://0/",
    "http://10.1.2.3/",
    "http://100.64.0.1/",
    "http://169.254.169.254/latest/meta-data/",
    "http://172.31.255.255/",
    "http://192.0.0.8/",
    "http://192.168.1.1/",
    "http://198.18.0.1/",
    "http://203.0.113.9/",
    "http://224.0.0.1/",
    "http://240.0.0.1/",
    "http://255.255.255.255/",
    "http://[::1]/",
    "http://[::]/",
    "http://[::ffff:127.0.0.1]/",
    "http://[::ffff:7f00:1]/",
    "http://[::127.0.0.1]/",
    "http://[64:ff9b::7f00:1]/",
    "http://[64:ff9b:1::1]/",
    "http://[2002:7f00:1::]/",
    "http://[2001:0:7f00:1::1]/",
    "http://[fe80::1]/",
    "http://[fe80::1%25eth0]/",
    "http://[fc00::1]/",
    "http://[fd12:3456::1]/",
    "http://[fec0::1]/",
    "http://[ff02::1]/",
    "http://[2001:db8::1]/",
]
OTHERWISE_REFUSED = {
    Code.SCHEME_NOT_ALLOWED: [
        "file:///etc/passwd",
        "FILE:///etc/passwd",
        "gopher://127.0.0.1:6379/_FLUSHALL",
        "ftp://example.com/a.jpg",
        "data:image/png;base64,AAAA",
        "javascript:alert(1)",
        "s3://bucket/key",
        "unix:///var/run/docker.sock",
        "dict://localhost:11211/stat",
    ],
    Code.URL_CREDENTIALS: [
        "http://user:secret@example.com/",
        "http://example.com@10.0.0.1/",
        "http://user@example.com/",
    ],
    Code.MALFORMED_URL: [
        "http://",
        "http:///etc/passwd",
        "//example.com/a.jpg",
        "example.com/a.jpg",
        "http://[::1/",
        "http://[127.0.0.1]/",
        "http://example.com:99999/",
        "http://example.com:0/",
        "http://example.com:port/",
        "http://example.com\\@10.0.0.1/",
        "http://exa mple.com/",
        "http://example.com/\r\nHost: internal",
        "http://%31%32%37.0.0.1/",
        "http://1.2.3.4.5/",
        "http://256.1.1.1/",
        "http://0x/",
        "http://example.com/" + "a" * 9000,
    ],
    Code.MISSING_URL: ["", "   ", None],
}


def refusal(url, **options):
    with pytest.raises(Rejected) as caught:
        parse_url(url, **{"allow_private": False, **options})
    return caught.value.code


@pytest.mark.parametrize("url", PRIVATE_LITERALS)
def test_private_addresses_are_refused_in_every_spelling(url):
    assert refusal(url) == Code.PRIVATE_ADDRESS


@pytest.mark.parametrize(("code", "url"), [(code, url) for code, urls in OTHERWISE_REFUSED.items() for url in urls])
def test_other_attacks_are_refused_even_where_private_addresses_are_allowed(code, url):
    assert refusal(url, allow_private=True) == code


def test_allowing_private_addresses_opens_just_these():
    for url in PRIVATE_LITERALS:
        parsed = parse_url(url, allow_private=True)
        assert not is_public(ip_address(parsed.host))


@pytest.mark.parametrize(
    ("text", "sent"),
    [
        ("http://example.com/a.jpg#top", "http://example.com/a.jpg"),
        ("  https://example.com/a%2Fb?sig=a%2Cb+c&x=%7E ", "https://example.com/a%2Fb?sig=a%2Cb+c&x=%7E"),
        ("http://example.com/a b/ü.jpg", "http://example.com/a%20b/%C3%BC.jpg"),
        ("http://bücher.example/", "http://xn--bcher-kva.example/"),
        ("http://134744072/", "http://8.8.8.8/"),
        ("http://[64:ff9b::808:808]/", "http://[64:ff9b::808:808]/"),
        ("HTTPS://example.com", "https://example.com"),
    ],
)
def test_good_urls_are_kept_as_written_or_spelled_out(text, sent):
    assert str(parse_url(text, allow_private=False)) == sent


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "100.63.255.255", "172.32.0.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
)
def test_public_addresses_are_public(address):
    assert is_public(ip_address(address))


@settings(max_examples=300, deadline=None)
@given(start=st.sampled_from(["", "http://", "https://[", "http://a.example/", "http://1."]), text=st.text())
def test_any_text_is_a_url_or_refused(start, text):
    try:
        url = parse_url(start + text, allow_private=False)
    except Rejected as rejected:
        url, code = None, rejected.code
    if url is None:
        assert code.error_class == "url"
    else:
        assert url.scheme in ("http", "https")
        assert url.raw_host
        assert all("!" <= character <= "~" for character in url.raw_path_qs)


def fetch_all(*urls, **options):
    async def run():
        results = []
        async with Fetcher(AcquireConfig(retries=0, **options)) as fetcher:
            for url in urls:
                async with fetcher.fetch(url) as result:
                    results.append(result)
        return results

    return asyncio.run(run())


def fake_lookup(monkeypatch, answers):
    """Names resolve to what `answers` says, one list of addresses after the other; returns the log of lookups."""
    asked = []

    def lookup(host, port, *rest):
        asked.append(host)
        addresses = answers[host].pop(0) if len(answers[host]) > 1 else answers[host][0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    return asked


def test_a_name_that_resolves_to_a_private_address_is_refused(monkeypatch):
    fake_lookup(monkeypatch, {"rebound.example": [["127.0.0.1"]], "mixed.example": [["10.0.0.1", "192.168.0.1"]]})
    with HostileServer().running() as server:
        found = fetch_all(f"http://rebound.example:{server.port}/empty", "http://mixed.example/")
    assert [result.code for result in found] == [Code.PRIVATE_ADDRESS] * 2
    assert server.requests == []


def test_the_checked_address_is_the_connected_one(monkeypatch):
    """DNS rebinding: the name's second answer would be private, and is never asked for."""
    monkeypatch.setattr(guard, "is_public", lambda address: str(address) == "127.0.0.2")
    asked = fake_lookup(monkeypatch, {"rebinding.example": [["127.0.0.2"], ["127.0.0.1"]]})
    with HostileServer("127.0.0.2").running() as server:
        url = f"http://rebinding.example:{server.port}/status?code=404"
        found = fetch_all(url, url, url)
        assert [result.code for result in found] == [Code.HTTP_404] * 3
        assert asked == ["rebinding.example"]
        assert fetch_all(url)[0].code == Code.PRIVATE_ADDRESS  # a new session, the second answer


def test_private_answers_are_dropped_from_a_mixed_one(monkeypatch):
    monkeypatch.setattr(guard, "is_public", lambda address: str(address) == "127.0.0.2")
    fake_lookup(monkeypatch, {"mixed.example": [["127.0.0.1", "127.0.0.2"]]})
    with HostileServer("127.0.0.2").running() as server:
        assert fetch_all(f"http://mixed.example:{server.port}/status?code=410")[0].code == Code.HTTP_410


@pytest.mark.parametrize(
    ("target", "code"),
    [
        ("http://127.0.0.1/secret", Code.PRIVATE_ADDRESS),
        ("http://169.254.169.254/latest/meta-data/", Code.PRIVATE_ADDRESS),
        ("http://[::ffff:127.0.0.1]/", Code.PRIVATE_ADDRESS),
        ("//0x7f.1/", Code.PRIVATE_ADDRESS),
        ("file:///etc/passwd", Code.SCHEME_NOT_ALLOWED),
        ("gopher://127.0.0.1:70/", Code.SCHEME_NOT_ALLOWED),
        ("http://user:secret@127.0.0.2/", Code.URL_CREDENTIALS),
        ("http://[::1/", Code.MALFORMED_URL),
        ("http://secret.example/", Code.PRIVATE_ADDRESS),
    ],
)
def test_redirects_obey_the_same_rules(monkeypatch, target, code):
    monkeypatch.setattr(guard, "is_public", lambda address: str(address) == "127.0.0.2")
    fake_lookup(monkeypatch, {"secret.example": [["127.0.0.1"]]})
    with HostileServer("127.0.0.2").running() as server:
        [found] = fetch_all(server.url(f"redirect?to={target}"))
    assert (found.code, found.http_status) == (code, 302)
    assert len(server.requests) == 1


def test_sockets_to_private_addresses_cannot_be_made_at_all():
    info = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 80))
    with pytest.raises(OSError, match=r"127\.0\.0\.1 is not a public address"):
        socket_factory(allow_private=False)(info)
    socket_factory(allow_private=True)(info).close()


def test_proxies_of_the_environment_are_ignored(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9/")
    with HostileServer().running() as server:
        assert fetch_all(server.url("status?code=404"), allow_private=True)[0].code == Code.HTTP_404
