"""The HTTP server of the quickstart: images rendered from the URL path, or the files of one folder.

`LoopbackServer` runs it as `python -m clip_data.demo.server <listening socket> <parent's process id> [folder]`.
Paths are `/<kind>/<seed>/<index>[.suffix]`. The answer follows from the path alone, except that `unavailable_once`
refuses the first request for each path in the life of a server.
"""

import asyncio
import os
import re
import socket
import sys
from collections.abc import Iterator
from functools import partial
from itertools import repeat
from pathlib import Path

from aiohttp import web
from aiohttp.typedefs import Handler

from clip_data.demo.bodies import body
from clip_data.demo.kinds import KINDS
from clip_data.demo.scenes import scene

OVERSIZED_BYTES = 128 * 2**20
DECLARED_BYTES = 8 * 2**30
DRIP_PIECES, DRIP_PAUSE_S = 6, 0.1
_FOREVER_S = 24 * 3600.0
_PARENT_CHECK_S = 0.25

_STATUS = {"not_found": 404, "gone": 410, "server_error": 500}
_ROBOTS = {"noai": "noai", "noimageai": "noimageai", "noai_other_bot": "otherbot: noai"}
_CHAIN_HOPS = 3
_PATH = re.compile(r"/(?P<kind>\w+)/(?P<seed>\d{1,18})/(?P<index>\d{1,18})(?P<suffix>\.\w+)?")
_refused_once: set[str] = set()


async def _alive(request: web.Request) -> web.Response:
    return web.Response(text="clip-data loopback server\n")


async def _scene(request: web.Request) -> web.StreamResponse:
    match = _PATH.fullmatch(request.path)
    if match is None or match["kind"] not in KINDS:
        raise web.HTTPNotFound(text=f"no image at {request.path}\n")
    kind = match["kind"]
    if kind in _STATUS:
        return web.Response(status=_STATUS[kind], text="no image here\n")
    if kind == "unavailable_once" and request.path not in _refused_once:
        _refused_once.add(request.path)
        return web.Response(status=503, headers={"Retry-After": "0"})
    if kind.startswith("redirect"):
        return _redirect(kind, request)
    if kind == "stall_first_byte":
        await asyncio.sleep(_FOREVER_S)
    if kind == "empty_body":
        return web.Response(body=b"", content_type="image/jpeg")
    data, mime = body(kind, scene(int(match["seed"]), int(match["index"])))
    if kind in _LENGTHS:
        return await _send_slowly(request, kind, data, mime)
    if kind == "truncated":
        data = data[: len(data) * 6 // 10]
    headers = {"X-Robots-Tag": _ROBOTS[kind]} if kind in _ROBOTS else {}
    return web.Response(body=data, content_type=mime, headers=headers)


def _redirect(kind: str, request: web.Request) -> web.Response:
    hop = int(request.query.get("hop", "0"))
    if kind == "redirect_scheme":
        target = f"ftp://127.0.0.1{request.path}"
    elif kind == "redirect_loop":
        target = f"{request.path}?hop={1 - hop % 2}"
    elif kind == "redirect_chain" and hop + 1 < _CHAIN_HOPS:
        target = f"{request.path}?hop={hop + 1}"
    else:
        target = request.path.replace(f"/{kind}/", "/ok/", 1)
    return web.Response(status=301 if hop % 2 else 302, headers={"Location": target})


# The declared length of bodies that are sent in pieces: 0 stands for that of the image, None for a chunked body.
_LENGTHS = {
    "closed_early": 0,
    "drip": 0,
    "stall_body": 0,
    "oversized_declared": DECLARED_BYTES,
    "oversized_chunked": None,
    "endless_trickle": None,
}


def _pieces(kind: str, data: bytes) -> Iterator[tuple[float, bytes]]:
    """Yields the pieces of a body, each with the seconds to wait before it."""
    if kind == "drip":
        step = -(-len(data) // DRIP_PIECES)
        yield from ((DRIP_PAUSE_S, data[start : start + step]) for start in range(0, len(data), step))
    elif kind == "endless_trickle":
        yield from repeat((DRIP_PAUSE_S, data[:1]))
    elif kind == "closed_early":
        yield 0, data[: len(data) // 2]
    elif kind == "oversized_chunked":
        yield 0, data
        yield from repeat((0, bytes(2**16)), OVERSIZED_BYTES // 2**16)
    else:
        yield 0, data[: len(data) // 3] if kind == "stall_body" else data
        yield _FOREVER_S, b""


async def _send_slowly(request: web.Request, kind: str, data: bytes, mime: str) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": mime})
    if _LENGTHS[kind] is None:
        response.enable_chunked_encoding()
    else:
        response.content_length = _LENGTHS[kind] or len(data)
    try:
        await response.prepare(request)
        for pause, piece in _pieces(kind, data):
            if pause:
                await asyncio.sleep(pause)
            await response.write(piece)
    except ConnectionResetError:
        return web.Response()  # the client gave up, as it should with most kinds: nobody reads this answer
    if kind == "closed_early" and request.transport is not None:
        request.transport.close()
    return response


async def _file(root: Path, request: web.Request) -> web.StreamResponse:
    """Returns a file below `root`; a path or link that leads out of it is a 404."""
    asked = request.match_info["path"]
    path = (root / asked.lstrip("/")).resolve() if "\0" not in asked else root
    if not path.is_relative_to(root) or not path.is_file():
        raise web.HTTPNotFound(text="no such file\n")
    return web.FileResponse(path)


async def serve(answer: Handler, listener: socket.socket, parent: int) -> None:
    """Serves until the process `parent` has ended."""
    app = web.Application()
    app.add_routes([web.get("/", _alive), web.get("/{path:.+}", answer)])
    # A client that gives up ends its handler at once: a stalled request would otherwise last a day.
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    await web.SockSite(runner, listener, backlog=1024).start()
    while os.getppid() == parent:
        await asyncio.sleep(_PARENT_CHECK_S)
    await runner.cleanup()


def main(args: list[str]) -> None:
    listener, parent, *folder = args
    answer = partial(_file, Path(folder[0]).resolve()) if folder else _scene
    asyncio.run(serve(answer, socket.socket(fileno=int(listener)), int(parent)))


if __name__ == "__main__":
    main(sys.argv[1:])
