import http.client
import io
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image, ImageOps

from clip_data.demo import KINDS, LoopbackServer, encode, render, scene
from clip_data.errors import ClipDataError


@pytest.fixture(scope="module")
def server():
    with LoopbackServer(port=0) as running:
        yield running


def get(server, path, timeout=5.0):
    """(answer, body) of one raw request; nothing is normalised, nothing is followed."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=timeout)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer, answer.read()
    finally:
        connection.close()


def index_with(format, start=0):
    return next(index for index in range(start, 1000) if scene(0, index).format == format)


def original(index):
    drawn = scene(0, index)
    return encode(render(drawn), drawn.format, drawn.quality)


def difference(data, expected):
    shown = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"), np.float64)
    return float(np.abs(shown - np.asarray(expected, np.float64)).mean())


@pytest.mark.parametrize("format", ["jpeg", "png", "webp"])
def test_ok_is_the_scene(server, format):
    index = index_with(format)
    answer, data = get(server, f"/ok/0/{index}.{format}")
    assert (answer.status, answer.headers["Content-Type"]) == (200, f"image/{format}")
    assert data == original(index)


@pytest.mark.parametrize(("kind", "status"), [("not_found", 404), ("gone", 410), ("server_error", 500)])
def test_dead_links(server, kind, status):
    assert get(server, f"/{kind}/0/3.jpg")[0].status == status


def test_unavailable_once_answers_the_second_request(server):
    first, _ = get(server, "/unavailable_once/0/3.jpg")
    assert (first.status, first.headers["Retry-After"]) == (503, "0")
    for _ in range(2):
        answer, data = get(server, "/unavailable_once/0/3.jpg")
        assert (answer.status, data) == (200, original(3))
    assert get(server, "/unavailable_once/0/4.jpg")[0].status == 503


def follow(server, path):
    seen = []
    while len(seen) < 10:
        answer, data = get(server, path)
        if answer.status not in (301, 302):
            return seen, answer.status, data
        path = answer.headers["Location"]
        seen.append(path)
        if not path.startswith("/"):
            return seen, answer.status, data
    return seen, None, b""


def test_redirects(server):
    hops, status, data = follow(server, "/redirect/0/3.jpg")
    assert (len(hops), status, data) == (1, 200, original(3))
    hops, status, data = follow(server, "/redirect_chain/0/3.jpg")
    assert (len(hops), status, data) == (3, 200, original(3))
    hops, status, _ = follow(server, "/redirect_loop/0/3.jpg")
    assert (len(hops), len(set(hops)), status) == (10, 2, None)
    hops, status, _ = follow(server, "/redirect_scheme/0/3.jpg")
    assert hops[0].startswith("ftp://")


def test_html_and_empty_bodies(server):
    answer, data = get(server, "/html/0/2.jpg")
    assert (answer.status, answer.headers["Content-Type"].split(";")[0]) == (200, "text/html")
    assert data.startswith(b"<!doctype html>")
    answer, data = get(server, "/html/0/3.jpg")
    assert (answer.headers["Content-Type"], data[:9]) == ("image/jpeg", b"<!doctype")
    answer, data = get(server, "/empty_body/0/3.jpg")
    assert (answer.status, data) == (200, b"")


@pytest.mark.parametrize("format", ["jpeg", "png", "webp"])
def test_truncated_is_a_consistent_answer_that_does_not_decode(server, format):
    index = index_with(format)
    answer, data = get(server, f"/truncated/0/{index}")
    assert int(answer.headers["Content-Length"]) == len(data) < len(original(index))
    with pytest.raises(OSError, match=r"truncated|broken|decoder"):
        Image.open(io.BytesIO(data)).load()


def test_closed_early_ends_before_its_length(server):
    with pytest.raises(http.client.IncompleteRead) as caught:
        get(server, "/closed_early/0/3.jpg")
    assert caught.value.partial == original(3)[: len(original(3)) // 2]


@pytest.mark.parametrize("side", [1, 8])
def test_tiny(server, side):
    _, data = get(server, f"/tiny_{side}x{side}/0/3.jpg")
    assert Image.open(io.BytesIO(data)).size == (side, side)


def test_pixel_bomb_is_small_and_promises_much(server):
    _, data = get(server, "/pixel_bomb/0/3.png")
    assert len(data) < 200
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert (int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")) == (30_000, 30_000)
    with pytest.raises(Image.DecompressionBombError):
        Image.open(io.BytesIO(data))


def test_oversized_bodies_with_and_without_length(server):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.request("GET", "/oversized_chunked/0/3.jpg")
    answer = connection.getresponse()
    assert answer.headers["Content-Length"] is None
    assert len(answer.read(30 * 2**20)) == 30 * 2**20
    connection.close()
    connection.request("GET", "/oversized_declared/0/3.jpg")
    answer = connection.getresponse()
    assert int(answer.headers["Content-Length"]) == 8 * 2**30
    answer.close()
    connection.close()


def test_drip_completes_slowly(server):
    start = time.monotonic()
    _, data = get(server, "/drip/0/3.jpg")
    assert data == original(3)
    assert time.monotonic() - start > 0.5


@pytest.mark.slow
def test_stalls_and_the_trickle_never_complete(server):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=1.0)
    connection.request("GET", "/stall_first_byte/0/3.jpg")
    with pytest.raises(TimeoutError):
        connection.getresponse()
    connection.close()
    connection.request("GET", "/stall_body/0/3.jpg")
    answer = connection.getresponse()
    assert len(answer.read1(100)) == 100
    with pytest.raises(TimeoutError):
        answer.read()
    connection.close()
    connection.request("GET", "/endless_trickle/0/3.jpg")
    answer = connection.getresponse()
    start = time.monotonic()
    assert len(answer.read(6)) == 6
    assert time.monotonic() - start > 0.3
    connection.close()


def test_copies(server):
    assert get(server, "/duplicate_bytes/0/3.jpg")[1] == original(3)
    _, data = get(server, "/duplicate_pixels/0/3.jpg")
    assert data != original(3)
    assert difference(data, render(scene(0, 3))) < 4


@pytest.mark.parametrize(
    ("kind", "header"),
    [("noai", "noai"), ("noimageai", "noimageai"), ("noai_other_bot", "otherbot: noai"), ("ok", None)],
)
def test_opt_out_headers(server, kind, header):
    answer, data = get(server, f"/{kind}/0/3.jpg")
    assert answer.headers["X-Robots-Tag"] == header
    assert data == original(3)


@pytest.mark.parametrize("index", [0, 1, 2])
def test_exif_rotated_is_upright_once_turned(server, index):
    _, data = get(server, f"/exif_rotated/0/{index}.jpg")
    assert Image.open(io.BytesIO(data)).getexif()[0x0112] == (3, 6, 8)[index % 3]
    assert difference(data, render(scene(0, index))) < 5


@pytest.mark.parametrize(
    ("kind", "mode", "frames"),
    [("animated_gif", "P", 3), ("animated_webp", "RGBA", 3), ("cmyk_jpeg", "CMYK", 1), ("rgba_png", "RGBA", 1)],
)
def test_unusual_formats_show_the_scene(server, kind, mode, frames):
    _, data = get(server, f"/{kind}/0/3.bin")
    image = Image.open(io.BytesIO(data))
    assert (image.mode, getattr(image, "n_frames", 1)) == (mode, frames)
    assert difference(data, render(scene(0, 3))) < 14


def test_every_served_kind_is_known_and_others_are_not_found(server):
    unserved = {"scheme_ftp", "scheme_file", "scheme_data", "malformed_url", "empty_url", "null_url"}
    slow = {name for name, kind in KINDS.items() if kind.slow} | {"oversized_chunked", "oversized_declared"}
    images = {name for name, kind in KINDS.items() if kind.outcome != "rejected"} - {"duplicate_row"}
    for kind in sorted(images - unserved - slow - {"redirect", "redirect_chain", "unavailable_once"}):
        assert get(server, f"/{kind}/0/5")[0].status == 200, kind
    for path in ("/nonsense/0/5", "/ok/0", "/ok/0/x.jpg", "/ok/0/5.jpg/more", "/ok/-1/5", f"/ok/0/{10**30}"):
        assert get(server, path)[0].status == 404, path


def test_server_outlives_clients_that_give_up_without_a_word(capfd):
    with LoopbackServer(port=0) as running:
        for kind in ("stall_body", "oversized_chunked", "oversized_declared", "endless_trickle", "drip") * 4:
            client = socket.create_connection(("127.0.0.1", running.port))
            client.sendall(f"GET /{kind}/0/3.jpg HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            assert client.recv(10) == b"HTTP/1.1 2"
            client.close()
        time.sleep(0.3)
        assert get(running, "/ok/0/3.jpg")[1] == original(3)
        descriptors = len(os.listdir(f"/proc/{running.pid}/fd")) if sys.platform == "linux" else 0
    assert capfd.readouterr().err == ""
    assert descriptors < 20


def test_a_restarted_server_answers_alike():
    answers = []
    for _ in range(2):
        with LoopbackServer(port=0) as running:
            statuses = [get(running, "/unavailable_once/0/9.jpg")[0].status for _ in range(2)]
            answers.append((statuses, get(running, "/ok/0/9.jpg")[1]))
    assert answers[0] == answers[1]
    assert answers[0][0] == [503, 200]


def test_port_in_use_names_port_and_way_out():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with (
            pytest.raises(ClipDataError, match=rf"port {port} is in use: choose another with --input.port"),
            LoopbackServer(port=port),
        ):
            pass


def test_bad_port_and_folder(tmp_path):
    with pytest.raises(ClipDataError, match="no port 70000"):
        LoopbackServer(port=70000)
    with pytest.raises(ClipDataError, match="no such folder"):
        LoopbackServer(folder=tmp_path / "none")


def refuses(port):
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except ConnectionRefusedError:
        return True
    return False


def test_server_ends_with_its_context():
    with LoopbackServer(port=0) as running:
        port = running.port
        assert not refuses(port)
    assert refuses(port)


def test_server_ends_with_a_killed_parent_and_frees_the_port():
    program = (
        "import time; from clip_data.demo import LoopbackServer\n"
        "with LoopbackServer(port=0) as s: print(s.port, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    port = int(parent.stdout.readline())
    assert not refuses(port)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    with LoopbackServer(port=port) as running:
        assert get(running, "/ok/0/3.jpg")[0].status == 200
    assert refuses(port)


def test_folder_server_stays_inside(tmp_path):
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (root / "sub" / "a.txt").write_text("inside")
    (tmp_path / "secret.txt").write_text("outside")
    (tmp_path / "rootling.txt").write_text("outside")
    (root / "link.txt").symlink_to(tmp_path / "secret.txt")
    (root / "up").symlink_to(tmp_path)
    (root / "inner.txt").symlink_to(root / "sub" / "a.txt")
    with LoopbackServer(port=0, folder=root) as running:
        assert get(running, "/sub/a.txt")[1] == b"inside"
        assert get(running, "/inner.txt")[1] == b"inside"
        for path in (
            "/../secret.txt",
            "/sub/../../secret.txt",
            "/..%2fsecret.txt",
            "/%2e%2e/secret.txt",
            "/%2e%2e%2fsecret.txt",
            "/../rootling.txt",
            "/link.txt",
            "/up/secret.txt",
            f"/{tmp_path}/secret.txt",
            f"/%2f{tmp_path}/secret.txt",
            "/sub",
            "/sub/a.txt%00",
            "/none.txt",
        ):
            answer, data = get(running, path)
            assert answer.status == 404, path
            assert b"outside" not in data
