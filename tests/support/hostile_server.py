"""An HTTP server on loopback that misbehaves in every way a fetcher has to survive. Bytes on sockets, no framework."""

from __future__ import annotations

import asyncio
import gzip
import socket
import threading
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import parse_qsl, urlsplit

PAUSE_S = 0.05
GZIP_BOMB = gzip.compress(bytes(64 << 20), 9)


@dataclass(frozen=True)
class Request:
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    """names in lower case"""


Reply = AsyncIterator[bytes]
Handler = Callable[["HostileServer", Request], Reply]


def head(status: int = 200, **headers: str | int) -> bytes:
    """A response head; underscores in names become hyphens."""
    lines = [f"HTTP/1.1 {status} X", *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def whole(body: bytes, status: int = 200, **headers: str | int) -> bytes:
    return head(status, Content_Length=len(body), **headers) + body


class HostileServer:
    """Serves `put` bodies under /body/<name> and the handlers below under /<their name>?<options>."""

    def __init__(self, address: str = "127.0.0.1") -> None:
        self.address = address
        self.port = 0
        self.requests: list[Request] = []
        self.sent: Counter[str] = Counter()
        """bytes written per path"""
        self.busiest = 0
        """most requests under way at a time"""
        self._bodies: dict[str, tuple[bytes, dict[str, str]]] = {}
        self._busy = 0

    def put_raw(self, name: str, reply: bytes) -> str:
        """Serves these very bytes as the response from now on; its URL."""
        self._bodies[name] = reply, {}
        return self.url(f"raw/{name}")

    def put(self, name: str, body: bytes, **headers: str) -> str:
        """Serves a body from now on; its URL."""
        self._bodies[name] = body, headers
        return self.url(f"body/{name}")

    def url(self, path: str) -> str:
        return f"http://{self.address}:{self.port}/{path}"

    def hits(self, path: str) -> int:
        return sum(request.path == f"/{path}" for request in self.requests)

    @contextmanager
    def running(self) -> Iterator[HostileServer]:
        """Runs the server in a thread of its own until the block ends."""
        loop = asyncio.new_event_loop()
        server = loop.run_until_complete(asyncio.start_server(self._serve, self.address, 0, backlog=512))
        self.port = server.sockets[0].getsockname()[1]
        thread = threading.Thread(target=loop.run_forever, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            loop.call_soon_threadsafe(server.close)
            asyncio.run_coroutine_threadsafe(_cancel_all(), loop).result(5)
            loop.call_soon_threadsafe(loop.stop)
            thread.join(5)
            loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._answer(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client left, or the test is over
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answers one request; whether the connection is good for another."""
        start = await reader.readexactly(1)
        if start == b"\x16":  # a TLS client, answered in plain text
            writer.write(head(400))
            return False
        lines = (start + await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        parts = urlsplit(lines[0].split(" ")[1])
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:] if line)}
        request = Request(parts.path, dict(parse_qsl(parts.query)), headers)
        self.requests.append(request)
        self._busy += 1
        self.busiest = max(self.busiest, self._busy)
        try:
            name = parts.path.split("/")[1]
            async for data in _body(self, request) if name == "body" else HANDLERS[name](self, request):
                writer.write(data)
                await writer.drain()
                self.sent[parts.path] += len(data)
        finally:
            self._busy -= 1
        # A connection that closes without having said so is a fault of its own, which "disconnect" has.
        return name in ("body", "redirect", "chain", "ring", "status", "unavailable")

    def body(self, request: Request) -> bytes:
        return self._bodies[request.query.get("name", request.path.rpartition("/")[2])][0]

    def extra(self, request: Request) -> dict[str, str]:
        return self._bodies[request.path.rpartition("/")[2]][1]


async def _cancel_all() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


async def _body(server: HostileServer, request: Request) -> Reply:
    await asyncio.sleep(float(request.query.get("delay", 0)))
    yield whole(server.body(request), **server.extra(request))


async def _raw(server: HostileServer, request: Request) -> Reply:
    """/raw/<name>: what `put_raw` was given; redirects in it may lead to other names."""
    reply, _ = server._bodies.get(request.path.rpartition("/")[2], (whole(b"", 404), {}))
    yield reply


async def _status(server: HostileServer, request: Request) -> Reply:
    code = int(request.query["code"])
    yield whole(b"" if code in (204, 304) else b"no", code)


async def _redirect(server: HostileServer, request: Request) -> Reply:
    await asyncio.sleep(float(request.query.get("delay", 0)))
    yield whole(b"", int(request.query.get("code", 302)), Location=request.query["to"])


async def _chain(server: HostileServer, request: Request) -> Reply:
    """/chain?left=3&to=… : so many redirects in a row."""
    left = int(request.query["left"])
    to = f"/chain?left={left - 1}&to={request.query['to']}" if left > 1 else request.query["to"]
    yield whole(b"", 301, Location=to)


async def _ring(server: HostileServer, request: Request) -> Reply:
    yield whole(b"", 302, Location=f"/ring?at={1 - int(request.query.get('at', 0))}")


async def _unavailable(server: HostileServer, request: Request) -> Reply:
    """/unavailable/<name>?times=1&code=503&after=0 : refuses the first requests for this path."""
    if server.hits(request.path[1:]) <= int(request.query.get("times", 1)):
        after = {"Retry_After": request.query["after"]} if "after" in request.query else {}
        yield whole(b"later", int(request.query.get("code", 503)), **after)
    else:
        yield whole(server.body(request))


async def _disconnect(server: HostileServer, request: Request) -> Reply:
    """/disconnect/<name>?times=1 : hangs up on the first requests."""
    if server.hits(request.path[1:]) > int(request.query.get("times", 1_000_000)):
        yield whole(server.body(request))


async def _cut(server: HostileServer, request: Request) -> Reply:
    yield head(Content_Length=1000) + bytes(500)


async def _cut_chunked(server: HostileServer, request: Request) -> Reply:
    yield head(Transfer_Encoding="chunked") + b"100\r\n" + bytes(256) + b"\r\n"


async def _cut_gzip(server: HostileServer, request: Request) -> Reply:
    yield whole(gzip.compress(b"picture" * 1000)[:-12], Content_Encoding="gzip")


async def _drip(server: HostileServer, request: Request) -> Reply:
    yield head()
    while True:
        yield b"x"
        await asyncio.sleep(PAUSE_S)


async def _drip_header(server: HostileServer, request: Request) -> Reply:
    yield b"HTTP/1.1 200 OK\r\n"
    while True:
        yield b"X-A: b\r\n"
        await asyncio.sleep(PAUSE_S)


async def _continue_for_ever(server: HostileServer, request: Request) -> Reply:
    while True:
        yield b"HTTP/1.1 100 Continue\r\n\r\n"
        await asyncio.sleep(PAUSE_S)


async def _silent(server: HostileServer, request: Request) -> Reply:
    await asyncio.sleep(3600)
    yield b""


async def _stall(server: HostileServer, request: Request) -> Reply:
    yield head(Content_Length=1000) + bytes(500)
    await asyncio.sleep(3600)


async def _flood(server: HostileServer, request: Request) -> Reply:
    """Header lines without end, as fast as the client takes them."""
    yield b"HTTP/1.1 200 OK\r\n"
    while True:
        yield b"X-Flood: 0123456789\r\n" * 1000


async def _long_header(server: HostileServer, request: Request) -> Reply:
    yield b"HTTP/1.1 200 OK\r\nX-Long: "
    while True:
        yield b"x" * 65536


async def _garbage(server: HostileServer, request: Request) -> Reply:
    yield b"SSH-2.0-OpenSSH_9.2\r\n\x00\x01\x02\r\n\r\n"


async def _endless(server: HostileServer, request: Request) -> Reply:
    yield head()
    while True:
        yield bytes(65536)


async def _huge(server: HostileServer, request: Request) -> Reply:
    yield head(Content_Length=10**12) + bytes(1000)
    await asyncio.sleep(3600)


async def _bomb(server: HostileServer, request: Request) -> Reply:
    yield whole(GZIP_BOMB, Content_Encoding="gzip")


async def _compressed(server: HostileServer, request: Request) -> Reply:
    """/compressed/<name>?how=gzip|deflate"""
    pack = {"gzip": gzip.compress, "deflate": zlib.compress}[request.query["how"]]
    yield whole(pack(server.body(request)), Content_Encoding=request.query["how"])


async def _brotli(server: HostileServer, request: Request) -> Reply:
    yield whole(b"\x0b\x02\x80hello\x03", Content_Encoding="br")


async def _not_gzip(server: HostileServer, request: Request) -> Reply:
    yield whole(b"this is not gzip", Content_Encoding="gzip")


async def _empty(server: HostileServer, request: Request) -> Reply:
    yield whole(b"")


HANDLERS: dict[str, Handler] = {
    "raw": _raw,
    "status": _status,
    "redirect": _redirect,
    "chain": _chain,
    "ring": _ring,
    "unavailable": _unavailable,
    "disconnect": _disconnect,
    "cut": _cut,
    "cut_chunked": _cut_chunked,
    "cut_gzip": _cut_gzip,
    "drip": _drip,
    "drip_header": _drip_header,
    "continue_for_ever": _continue_for_ever,
    "silent": _silent,
    "stall": _stall,
    "flood": _flood,
    "long_header": _long_header,
    "garbage": _garbage,
    "endless": _endless,
    "huge": _huge,
    "bomb": _bomb,
    "compressed": _compressed,
    "brotli": _brotli,
    "not_gzip": _not_gzip,
    "empty": _empty,
}


@contextmanager
def deaf_port() -> Iterator[int]:
    """A port on 127.0.0.1 where a connection is never completed: its queue is full."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        waiting = []
        try:
            for _ in range(4):
                client = socket.socket()
                client.setblocking(False)
                client.connect_ex(listener.getsockname())
                waiting.append(client)
            yield listener.getsockname()[1]
        finally:
            for client in waiting:
                client.close()


def closed_port() -> int:
    """A port on 127.0.0.1 where nothing listens."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return unused.getsockname()[1]
