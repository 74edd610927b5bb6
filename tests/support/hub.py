"""A small Hugging Face hub on loopback: files of repositories over HTTP, with its headers and with its failures."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

LARGE = (".safetensors", ".bin", ".pt", ".pth", ".npz")
"""Suffixes of what the hub keeps apart, under its SHA-256."""


@dataclass
class Repo:
    files: dict[str, bytes] = field(default_factory=dict)
    revisions: list[str] = field(default_factory=lambda: ["main"])
    gated: bool = False
    private: bool = False

    @property
    def commit(self) -> str:
        content = b"".join(name.encode() + body for name, body in sorted(self.files.items()))
        return hashlib.sha1(content, usedforsecurity=False).hexdigest()


@dataclass
class Fault:
    """What goes wrong with the requests whose path holds `where`, the first `times` of them."""

    where: str
    status: int | None = None
    """answer with this HTTP status"""
    cut: int | None = None
    """hang up after so many bytes of the body"""
    hang: int | None = None
    """fall silent after so many bytes of the body; -1 before the head"""
    corrupt: bool = False
    """send zeros in place of the body"""
    pause: float = 0.0
    """seconds between pieces of the body"""
    times: int = 1_000_000
    methods: tuple[str, ...] = ("GET", "HEAD")


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    headers: dict[str, str]
    """names in lower case"""
    body: bytes = b""


Route = Callable[["Handler", Request], None]


class Hub:
    """Repositories by name, faults, and all requests so far. `routes` takes (method, pattern of the path) to more."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self.routes: dict[tuple[str, str], Route] = {}
        self.bodies: dict[str, bytes] = {}
        """Files outside the hub, under /plain/NAME."""
        self.ranges = True
        """Whether the server takes Range."""
        self.port = 0
        self.closing = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def storage_url(self) -> str:
        """Where large files lie: another host name, as on the real hub."""
        return f"http://localhost:{self.port}"

    def put(self, repo: str, **files: bytes) -> Repo:
        """Adds files; a name's dots are written as __."""
        return self.add(repo, {name.replace("__", "."): body for name, body in files.items()})

    def add(self, repo: str, files: dict[str, bytes]) -> Repo:
        found = self.repos.setdefault(repo, Repo())
        found.files |= files
        return found

    def fail(self, where: str, **how: object) -> Fault:
        fault = Fault(where, **how)  # type: ignore[arg-type]
        self.faults.append(fault)
        return fault

    def paths(self, method: str) -> list[str]:
        return [request.path for request in self.requests if request.method == method]

    @contextmanager
    def running(self) -> Iterator[Hub]:
        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        server.hub = self  # type: ignore[attr-defined]
        self.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.closing.set()
            server.shutdown()
            server.server_close()
            thread.join(5)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> Hub:
        return self.server.hub  # type: ignore[attr-defined]

    def do_GET(self) -> None:
        self._serve()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = do_GET

    def _serve(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        path = unquote(urlsplit(self.path).path)
        request = Request(
            self.command,
            path,
            {name.lower(): value for name, value in self.headers.items()},
            self.rfile.read(length) if length else b"",
        )
        self.hub.requests.append(request)
        fault = self._fault(request)
        if fault is not None and fault.hang == -1:
            self.hub.closing.wait(30)
            self.close_connection = True
            return
        if fault is not None and fault.status is not None:
            self.reply(fault.status, b"no")
            return
        try:
            self._route(request, fault)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _route(self, request: Request, fault: Fault | None) -> None:
        for (method, pattern), route in self.hub.routes.items():
            if method == request.method and re.fullmatch(pattern, request.path):
                route(self, request)
                return
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", request.path):
            self._resolve(found[1], found[2], found[3], fault)
        elif found := re.fullmatch(r"/storage/(\w{64})", request.path):
            for repo in self.hub.repos.values():
                for body in repo.files.values():
                    if hashlib.sha256(body).hexdigest() == found[1]:
                        self.send_body(body, {"ETag": f'"{found[1]}"'}, fault)
                        return
            self.reply(404, b"")
        elif request.path.removeprefix("/plain/") in self.hub.bodies:
            body = self.hub.bodies[request.path.removeprefix("/plain/")]
            self.send_body(body, {"ETag": f'"{hashlib.md5(body, usedforsecurity=False).hexdigest()}"'}, fault)
        else:
            self.reply(404, b"not found")

    def _resolve(self, name: str, revision: str, file: str, fault: Fault | None) -> None:
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and "Authorization" not in self.headers):
            self.reply(401, b"", {"X-Error-Code": "RepoNotFound"})
            return
        if repo.gated:
            self.reply(403, b"", {"X-Error-Code": "GatedRepo"})
            return
        if revision not in (*repo.revisions, repo.commit):
            self.reply(404, b"", {"X-Error-Code": "RevisionNotFound"})
            return
        headers = {"X-Repo-Commit": repo.commit}
        body = repo.files.get(file)
        if body is None:
            self.reply(404, b"", {"X-Error-Code": "EntryNotFound", **headers})
        elif file.endswith(LARGE):
            sha256 = hashlib.sha256(body).hexdigest()
            self.reply(
                302,
                b"",
                {
                    "Location": f"{self.hub.storage_url}/storage/{sha256}",
                    "X-Linked-Etag": f'"{sha256}"',
                    "X-Linked-Size": str(len(body)),
                    **headers,
                },
            )
        else:
            git = hashlib.sha1(b"blob %d\0" % len(body) + body, usedforsecurity=False).hexdigest()
            self.send_body(body, {"ETag": f'"{git}"', **headers}, fault)

    def _fault(self, request: Request) -> Fault | None:
        for fault in self.hub.faults:
            if fault.where in request.path and request.method in fault.methods and fault.times > 0:
                fault.times -= 1
                return fault
        return None

    def reply(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def reply_json(self, data: object, status: int = 200) -> None:
        self.reply(status, json.dumps(data).encode(), {"Content-Type": "application/json"})

    def send_body(self, body: bytes, headers: dict[str, str], fault: Fault | None = None) -> None:
        """The body, or its rest after the offset that Range asks for, with what `fault` does to it."""
        start = 0
        if self.hub.ranges and (asked := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))):
            start = int(asked[1])
            if start >= len(body):
                self.reply(416, b"", {"Content-Range": f"bytes */{len(body)}"})
                return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        for name, value in {"Content-Length": str(len(body) - start), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        fault = fault or Fault("")
        rest = bytes(len(body) - start) if fault.corrupt else body[start:]
        limit = next((n for n in (fault.cut, fault.hang) if n is not None), len(rest))
        for at in range(0, min(limit, len(rest)), 4096):
            self.wfile.write(rest[at : min(at + 4096, limit)])
            time.sleep(fault.pause)
        if fault.hang is not None:
            self.wfile.flush()
            self.hub.closing.wait(30)
        if limit < len(rest):
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        pass
