"""Every code of the closed list, reached through the whole stage."""

import errno
import socket
from ipaddress import ip_address

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from clip_core import ClipError
from clip_data.acquire import AcquireConfig, AcquireStage, Code, guard
from clip_data.plan import PlanConfig, plan
from clip_data.stage import run_unit
from tests.support.hostile_server import HostileServer, closed_port, deaf_port
from tests.support.images import encode, noise

CONFIG = AcquireConfig(
    resize_mode="no",
    min_image_size=2,
    max_aspect_ratio=40_000,
    max_pixels=300_000,
    max_bytes=200_000,
    connect_timeout=0.8,
    first_byte_timeout=0.8,
    total_timeout=1.2,
    max_redirects=3,
    retry_backoff=0,
)
NAMES = {"no-such-name.example": socket.EAI_NONAME, "no-answer.example": socket.EAI_AGAIN}


def cases(server: HostileServer, deaf: int) -> dict[Code, str | None]:
    image = encode(noise(40, 30))
    images = {
        Code.NOT_AN_IMAGE: b"<!doctype html><title>404</title>",
        Code.FORMAT_NOT_ALLOWED: b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        Code.DECODE_ERROR: image[: len(image) // 2],
        Code.PIXEL_CAP: encode(Image.new("L", (600, 600)), "PNG"),
        Code.PIXEL_FORMAT: encode(Image.new("F", (30, 30), -1), "TIFF"),
        Code.TOO_SMALL: encode(noise(1, 1)),
        Code.ASPECT_RATIO: encode(Image.new("L", (90_000, 2)), "PNG"),
        Code.SIDE_CAP: encode(Image.new("L", (70_000, 2)), "PNG"),
    }
    opted_out = server.put("noai", image, X_Robots_Tag="noai")
    return {
        Code.MISSING_URL: None,
        Code.MALFORMED_URL: "http://[::1/a.jpg",
        Code.SCHEME_NOT_ALLOWED: "file:///etc/passwd",
        Code.URL_CREDENTIALS: "http://me:secret@127.0.0.1/a.jpg",
        Code.PRIVATE_ADDRESS: "http://10.0.0.1/a.jpg",
        Code.DNS_NOT_FOUND: "http://no-such-name.example/a.jpg",
        Code.DNS_FAILURE: "http://no-answer.example/a.jpg",
        Code.REFUSED: f"http://127.0.0.1:{closed_port()}/",
        Code.UNREACHABLE: "http://255.255.255.255/a.jpg",
        Code.RESET: server.url("disconnect"),
        Code.TLS: f"https://127.0.0.1:{server.port}/",
        Code.TIMEOUT_CONNECT: f"http://127.0.0.1:{deaf}/",
        Code.TIMEOUT_FIRST_BYTE: server.url("silent"),
        Code.TIMEOUT_TOTAL: server.url("stall"),
        Code.HTTP_DENIED: server.url("status?code=403"),
        Code.HTTP_404: server.url("status?code=404"),
        Code.HTTP_410: server.url("status?code=410"),
        Code.HTTP_429: server.url("status?code=429"),
        Code.HTTP_4XX: server.url("status?code=418"),
        Code.HTTP_5XX: server.url("status?code=500"),
        Code.HTTP_OTHER: server.url("status?code=206"),
        Code.TOO_MANY_REDIRECTS: server.url(f"chain?left=4&to={opted_out}"),
        Code.REDIRECT_LOOP: server.url("ring"),
        Code.BAD_RESPONSE: server.url("garbage"),
        Code.OPT_OUT: opted_out,
        Code.EMPTY_BODY: server.url("empty"),
        Code.BYTE_CAP: server.url("endless"),
        Code.TRUNCATED_BODY: server.url("cut"),
        Code.CONTENT_ENCODING: server.url("brotli"),
        **{code: server.put(code.value, body) for code, body in images.items()},
    }


def test_every_code_of_the_closed_list_is_reached(tmp_path, monkeypatch):
    lookup = socket.getaddrinfo

    def answer(host, *rest):
        if host in NAMES:
            raise socket.gaierror(NAMES[host], "no")
        return lookup(host, *rest)

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    # Loopback counts as public here and 10.0.0.1 does not: all codes in one run.
    monkeypatch.setattr(guard, "is_public", lambda address: address != ip_address("10.0.0.1"))
    with HostileServer().running() as server, deaf_port() as deaf:
        urls = cases(server, deaf)
        assert set(urls) == set(Code)
        source = pa.table({"url": pa.array([*urls.values(), server.put("good", encode(noise(40, 30)))])})
        pq.write_table(
            source.append_column("caption", pa.array(["a picture"] * len(source))), tmp_path / "list.parquet"
        )
        dataset = plan(str(tmp_path / "out"), PlanConfig(urls=(str(tmp_path / "list.parquet"),)))
        record = run_unit(dataset.url, AcquireStage(dataset.url, CONFIG), dataset.units[0])
    sidecar = dataset.sidecar(dataset.units[0]).to_pylist()
    found = {row["url"]: (row["error_class"], row["error"], row["status"]) for row in sidecar[:-1]}
    assert found == {url: (code.error_class, code.value, "rejected") for code, url in urls.items()}
    assert (sidecar[-1]["error_class"], sidecar[-1]["error"], sidecar[-1]["status"]) == (None, None, "success")
    assert record["counts"] == {"success": 1, **dict.fromkeys((code.value for code in Code), 1)}


def test_the_table_of_codes_is_consistent():
    assert {code.error_class for code in Code} == {"url", "connection", "timeout", "http", "policy", "body", "image"}
    assert all(code.transient for code in Code if code.retried)
    assert all(code.transient for code in Code if code.error_class == "timeout")
    assert not any(code.transient for code in Code if code.error_class in ("url", "policy", "image"))
    assert len({code.meaning for code in Code}) == len(Code)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOBUFS])
def test_trouble_of_this_machine_is_not_blamed_on_the_url(tmp_path, monkeypatch, number):
    def broken(**_):
        def make(addr_info):
            raise OSError(number, "exhausted")

        return make

    monkeypatch.setattr("clip_data.acquire.fetch.socket_factory", broken)
    pq.write_table(pa.table({"url": ["http://127.0.0.1:1/"], "caption": ["a"]}), tmp_path / "list.parquet")
    dataset = plan(str(tmp_path / "out"), PlanConfig(urls=(str(tmp_path / "list.parquet"),)))
    with pytest.raises(ClipError, match="exhausted"):
        run_unit(dataset.url, AcquireStage(dataset.url, AcquireConfig(allow_private=True)), dataset.units[0])
    assert not dataset.committed("acquire")
    assert dataset.store.list("shards") == []
