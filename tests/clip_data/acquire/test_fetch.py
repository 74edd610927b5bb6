"""The fetcher against a server that does everything wrong."""

import asyncio
import email.utils
import time

import pytest

from clip_data.acquire import AcquireConfig, Code, Fetcher
from tests.support.hostile_server import GZIP_BOMB, HostileServer, deaf_port

CAP = 100_000
CONFIG = {
    "allow_private": True,
    "max_bytes": CAP,
    "retries": 0,
    "retry_backoff": 0.05,
}
TIGHT = {"connect_timeout": 0.3, "first_byte_timeout": 0.4, "total_timeout": 0.8}
BODY = bytes(range(256)) * 100


@pytest.fixture(scope="module")
def server():
    with HostileServer().running() as server:
        server.put("a", BODY)
        yield server


def fetch_all(urls, **options):
    """All at once; (result, seconds) of each."""

    async def run():
        async with Fetcher(AcquireConfig(**{**CONFIG, **options})) as fetcher:

            async def one(url):
                started = time.monotonic()
                async with fetcher.fetch(url) as result:
                    return result, time.monotonic() - started

            return await asyncio.gather(*(one(url) for url in urls))

    return asyncio.run(run())


def fetch(url, **options):
    return fetch_all([url], **options)[0][0]


def test_a_good_body_arrives_whole(server):
    url = server.put("typed", BODY, Content_Type="Image/PNG; charset=binary")
    result = fetch(url)
    assert (result.body, result.code, result.http_status, result.redirects) == (BODY, None, 200, 0)
    assert (result.content_type, result.opt_out) == ("image/png", None)


@pytest.mark.parametrize(
    ("header", "stored"),
    [
        (b"image/\xff\xfe", "image/\ufffd\ufffd"),
        (b"image/\xed\xa0\x80; charset=\xe9", "image/\ufffd\ufffd\ufffd"),
        ("image/é".encode(), "image/é"),
        (b"a" * 7000, "a" * 100),
        (b"; charset=utf-8", None),
    ],
)
def test_a_content_type_of_any_bytes_can_be_stored(server, header, stored):
    reply = b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n%b" % (header, len(BODY), BODY)
    result = fetch(server.put_raw("typed-raw", reply))
    assert (result.body, result.content_type) == (BODY, stored)


WRONG_ADDRESSES = {
    b"http://xn--/a": Code.MALFORMED_URL,
    b"http://xn--a/a": Code.MALFORMED_URL,
    b"https://a.xn--999999b/": Code.MALFORMED_URL,
    b"//xn--\x80": Code.MALFORMED_URL,
    b"http://h\xffst/": Code.MALFORMED_URL,
    b"http://127.0.0.1:99999/": Code.MALFORMED_URL,
    b"http://127.0.0.1:x/": Code.MALFORMED_URL,
    b"http://a..b/": Code.MALFORMED_URL,
    b"http://" + b"a" * 64 + b".test/": Code.MALFORMED_URL,
    b"http://[::1": Code.MALFORMED_URL,
    b"http://me:secret@127.0.0.1/": Code.URL_CREDENTIALS,
    b"data:image/png;base64,AAAA": Code.SCHEME_NOT_ALLOWED,
    b"ftp://127.0.0.1/": Code.SCHEME_NOT_ALLOWED,
}


@pytest.mark.parametrize("redirected", [False, True])
def test_addresses_that_are_none_have_a_code(server, redirected):
    replies = {
        server.put_raw(f"to-{number}", b"HTTP/1.1 302 X\r\nLocation: %b\r\n\r\n" % address): code
        for number, (address, code) in enumerate(WRONG_ADDRESSES.items())
    }
    direct = {address.decode("utf-8", "surrogateescape"): code for address, code in WRONG_ADDRESSES.items()}
    del direct["//xn--\udc80"]  # relative to nothing
    alone = dict.fromkeys(["http:///a", "http://", "http://\ud800/", "http://a\n/"], Code.MALFORMED_URL)
    urls = replies if redirected else direct | alone
    found = fetch_all(urls)
    assert {url: result.code for url, (result, _) in zip(urls, found, strict=True)} == urls


def test_we_say_who_we_are_and_ask_for_no_compression(server):
    fetch(server.url("body/a?who"), user_agent_token="my-crawler")
    headers = server.requests[-1].headers
    assert "my-crawler/" in headers["user-agent"]
    assert headers["accept-encoding"] == "identity"
    assert "cookie" not in headers
    assert "authorization" not in headers


@pytest.mark.parametrize(
    ("path", "code", "least", "most"),
    [
        ("drip", Code.TIMEOUT_TOTAL, 0.8, 1.3),
        ("stall", Code.TIMEOUT_TOTAL, 0.8, 1.3),
        ("silent", Code.TIMEOUT_FIRST_BYTE, 0.4, 0.9),
        ("drip_header", Code.TIMEOUT_FIRST_BYTE, 0.4, 0.9),
        ("continue_for_ever", Code.TIMEOUT_FIRST_BYTE, 0.4, 0.9),
    ],
)
def test_deadlines_are_kept(server, path, code, least, most):
    [(result, seconds)] = fetch_all([server.url(path)], **TIGHT)
    assert result.code == code
    assert least <= seconds < most


def test_the_connect_deadline_is_kept():
    with deaf_port() as port:
        [(result, seconds)] = fetch_all([f"http://127.0.0.1:{port}/"], **TIGHT)
    assert result.code == Code.TIMEOUT_CONNECT
    assert 0.3 <= seconds < 0.8


def test_the_total_deadline_covers_all_redirects(server):
    """Each hop is within its own deadline; together they are not."""
    hops = [server.url(f"redirect?delay={delay}&to=/body/a%3Fdelay={delay}") for delay in (0.1, 0.5)]
    [(quick, _), (slow, seconds)] = fetch_all(hops, **{**TIGHT, "first_byte_timeout": 0.7})
    assert (quick.body, quick.redirects) == (BODY, 1)
    assert (slow.code, slow.redirects) == (Code.TIMEOUT_TOTAL, 1)
    assert 0.8 <= seconds < 1.3


@pytest.mark.parametrize("path", ["flood", "long_header"])
def test_floods_of_headers_are_cut_off(server, path):
    [(result, seconds)] = fetch_all([server.url(path)])
    assert result.code == Code.BAD_RESPONSE
    assert seconds < 5
    assert server.sent[f"/{path}"] < 20_000_000


@pytest.mark.parametrize("path", ["endless", "huge", "bomb"])
def test_bodies_over_the_cap_are_cut_off(server, path):
    [(result, seconds)] = fetch_all([server.url(path)])
    assert (result.code, result.body) == (Code.BYTE_CAP, None)
    assert seconds < 5
    assert server.sent[f"/{path}"] < 20_000_000


def test_a_compressed_bomb_costs_no_more_memory_than_the_cap(monkeypatch):
    from clip_data.acquire import body

    assert len(GZIP_BOMB) < CAP  # it is the content that is over the cap
    pieces = []
    inflated = body._inflated

    def watch(inflate, data):
        piece, rest = inflated(inflate, data)
        pieces.append(len(piece))
        return piece, rest

    monkeypatch.setattr(body, "_inflated", watch)
    with HostileServer().running() as server:
        assert fetch(server.url("bomb")).code == Code.BYTE_CAP
    assert sum(pieces) <= CAP + body.PIECE


@pytest.mark.parametrize("how", ["gzip", "deflate"])
def test_compression_we_did_not_ask_for_is_undone(server, how):
    assert fetch(server.url(f"compressed/a?how={how}")).body == BODY


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("cut", Code.TRUNCATED_BODY),
        ("cut_chunked", Code.TRUNCATED_BODY),
        ("cut_gzip", Code.TRUNCATED_BODY),
        ("not_gzip", Code.CONTENT_ENCODING),
        ("brotli", Code.CONTENT_ENCODING),
        ("empty", Code.EMPTY_BODY),
        ("status?code=204", Code.EMPTY_BODY),
        ("status?code=304", Code.HTTP_OTHER),
        ("status?code=302", Code.HTTP_OTHER),  # a redirect to nowhere
        ("status?code=451", Code.HTTP_DENIED),
        ("status?code=503", Code.HTTP_5XX),
    ],
)
def test_other_faults(server, path, code):
    assert fetch(server.url(path)).code == code


def test_redirects_are_followed_and_counted(server):
    result = fetch(server.url("chain?left=3&to=/body/a"))
    assert (result.body, result.redirects, result.http_status) == (BODY, 3, 200)
    assert fetch(server.url("redirect?code=307&to=../body/a%23part")).body == BODY
    result = fetch(server.url("chain?left=3&to=/body/a"), max_redirects=2)
    assert (result.code, result.redirects) == (Code.TOO_MANY_REDIRECTS, 2)
    result = fetch(server.url("ring"))
    assert (result.code, result.redirects) == (Code.REDIRECT_LOOP, 2)


def test_opt_outs_are_honoured_and_recorded(server):
    url = server.put("no", BODY, X_Robots_Tag="noimageai, noai")
    assert (fetch(url).code, fetch(url).opt_out, fetch(url).body) == (Code.OPT_OUT, "noai,noimageai", None)
    ignored = fetch(url, respect_opt_out=False)
    assert (ignored.code, ignored.opt_out, ignored.body) == (None, "noai,noimageai", BODY)
    assert fetch(url, opt_out_directives=("noml",)).body == BODY
    assert fetch(server.put("other", BODY, X_Robots_Tag="otherbot: noai")).body == BODY
    assert fetch(server.put("ours", BODY, X_Robots_Tag="me: noai"), user_agent_token="me").code == Code.OPT_OUT


@pytest.mark.parametrize("path", ["unavailable/x?code=503", "unavailable/x?code=429", "disconnect/x?times=1"])
def test_what_passes_by_itself_is_tried_again(server, path):
    name = f"retried-{path.replace('/', '-').replace('?', '-').replace('=', '-')}"
    server.put(name, BODY)
    url = server.url(path.replace("/x", f"/{name}"))
    assert fetch(url, retries=1).body == BODY
    assert server.hits(path.split("?")[0].replace("/x", f"/{name}")) == 2


def test_retries_end_and_permanent_faults_have_none(server):
    server.put("never", BODY)
    [(result, seconds)] = fetch_all([server.url("unavailable/never?times=99")], retries=2, retry_backoff=0.1)
    assert (result.code, server.hits("unavailable/never")) == (Code.HTTP_5XX, 3)
    assert 0.3 <= seconds < 0.8  # 0.1 and then 0.2
    assert fetch(server.url("status?code=404&unique"), retries=2).code == Code.HTTP_404
    assert [request.query.get("code") for request in server.requests[-2:]].count("404") == 1


def test_retry_after_is_obeyed_up_to_its_cap(server):
    server.put("soon", BODY)
    [(result, seconds)] = fetch_all([server.url("unavailable/soon?after=1")], retries=1)
    assert result.body == BODY
    assert seconds >= 1
    server.put("much-later", BODY)
    [(result, seconds)] = fetch_all([server.url("unavailable/much-later?after=3600")], retries=1)
    assert (result.code, server.hits("unavailable/much-later")) == (Code.HTTP_5XX, 1)
    assert seconds < 5
    server.put("past", BODY)
    date = email.utils.format_datetime(email.utils.localtime().replace(year=2020)).replace("+", "%2B")
    assert fetch(server.url(f"unavailable/past?after={date}"), retries=1).body == BODY
    server.put("odd", BODY)
    assert fetch(server.url("unavailable/odd?after=soon"), retries=1).body == BODY


def test_no_host_sees_more_than_its_share():
    with HostileServer().running() as server:
        server.put("a", BODY)
        urls = [server.url(f"body/a?delay=0.02&n={n}") for n in range(30)]
        assert all(result.body == BODY for result, _ in fetch_all(urls, per_host=3))
        assert server.busiest == 3


@pytest.mark.slow
def test_a_busy_host_holds_no_slot_and_waiting_is_not_counted():
    """15 fetches of 0.1 s through one place take 1.5 s, each within its total of 0.8 s; another host is not held up."""
    with HostileServer().running() as busy, HostileServer("127.0.0.2").running() as free:
        busy.put("a", BODY)
        free.put("a", BODY)
        urls = [busy.url(f"body/a?delay=0.1&n={n}") for n in range(15)] + [free.url("body/a")]
        found = fetch_all(urls, per_host=1, concurrency=2, **TIGHT)
    assert all(result.body == BODY for result, _ in found)
    assert found[-1][1] < found[-2][1] / 2
    assert found[-2][1] > 1.4


def test_bodies_count_as_fetches_until_they_are_let_go(server):
    async def run():
        async with Fetcher(AcquireConfig(**CONFIG, concurrency=1)) as fetcher:
            async with fetcher.fetch(server.url("body/a")):
                second = asyncio.create_task(anext(_entered(fetcher, server.url("body/a"))))
                await asyncio.sleep(0.2)
                held = not second.done()
            return held, (await second).body

    async def _entered(fetcher, url):
        async with fetcher.fetch(url) as result:
            yield result

    assert asyncio.run(run()) == (True, BODY)
