"""Fetches images from untrusted URLs, with limits on time, bytes, redirects and requests per host."""

from __future__ import annotations

import asyncio
import email.utils
import errno
import math
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any
from weakref import WeakValueDictionary

import aiohttp
from yarl import URL

from clip_data.acquire.body import read_body
from clip_data.acquire.codes import OUR_OWN, Code, Rejected
from clip_data.acquire.config import AcquireConfig
from clip_data.acquire.guard import GuardedResolver, parse_url, socket_factory
from clip_data.acquire.robots import refusals

REDIRECTS = (301, 302, 303, 307, 308)
STATUS_CODES = {
    **dict.fromkeys((401, 402, 403, 407, 451), Code.HTTP_DENIED),
    404: Code.HTTP_404,
    204: Code.EMPTY_BODY,
    410: Code.HTTP_410,
    429: Code.HTTP_429,
}
ERRNO_CODES = {
    errno.ECONNREFUSED: Code.REFUSED,
    errno.ETIMEDOUT: Code.TIMEOUT_CONNECT,
    errno.ECONNRESET: Code.RESET,
    errno.ECONNABORTED: Code.RESET,
}
KEEP_ALIVE = 2.0  # seconds; few hosts are needed again soon, and an idle connection holds a file descriptor


@dataclass(kw_only=True)
class FetchResult:
    """The result of one URL: a body, or the code of its rejection."""

    body: bytes | None = None
    """the bytes of the image, decompressed"""
    code: Code | None = None
    """reason of the rejection; None with a body"""
    http_status: int | None = None
    """status of the last response"""
    redirects: int = 0
    """redirects followed"""
    content_type: str | None = None
    """media type that the server of the last response declares"""
    opt_out: str | None = None
    """the opt-out directives of all responses, separated by commas"""


class Fetcher:
    """One session for the rows of a unit. An async context manager."""

    def __init__(self, config: AcquireConfig) -> None:
        self.config = config
        self._slots = asyncio.Semaphore(config.concurrency)
        self._hosts: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()  # those in use

    async def __aenter__(self) -> Fetcher:
        traces = aiohttp.TraceConfig()
        traces.on_connection_create_end.append(_connected)
        traces.on_connection_reuseconn.append(_connected)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0,  # the limits are those of this class
                resolver=GuardedResolver(allow_private=self.config.allow_private),
                socket_factory=socket_factory(allow_private=self.config.allow_private),
                ttl_dns_cache=300,
                keepalive_timeout=KEEP_ALIVE,
            ),
            headers={
                "User-Agent": f"Mozilla/5.0 (compatible; {self.config.user_agent_token}/{version('clip-data')})",
                "Accept": "image/*, */*;q=0.1",
                "Accept-Encoding": "identity",
            },
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, connect=None, sock_connect=None, sock_read=None),
            trace_configs=[traces],
            auto_decompress=False,
            trust_env=False,
        )
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._session.close()

    @asynccontextmanager
    async def fetch(self, address: str | None) -> AsyncIterator[FetchResult]:
        """Fetches one URL, with retries. A body holds its slot until the block ends, which bounds memory.

        Errors of the URL or its server are returned as a code; an exception is a bug or an error of this machine.
        """
        async with AsyncExitStack() as held:
            for attempt in range(self.config.retries + 1):
                walk = _Walk(self.config)
                result = await self._attempt(address, walk, held)
                if result.code is None or not result.code.retried or attempt == self.config.retries:
                    break
                pause = self.config.retry_backoff * 2**attempt if walk.retry_after is None else walk.retry_after
                if walk.retry_after is not None and pause > self.config.retry_after_cap:
                    break
                await asyncio.sleep(pause)
            yield result

    async def _attempt(self, address: str | None, walk: _Walk, held: AsyncExitStack) -> FetchResult:
        result = walk.result
        try:
            url = parse_url(address, allow_private=self.config.allow_private)
            while result.body is None:
                walk.visit(url)
                host = self._hosts.setdefault(url.host or "", asyncio.Semaphore(self.config.per_host))
                async with host, AsyncExitStack() as slot:
                    await slot.enter_async_context(self._slots)
                    reply = await self._request(url, walk)
                    if isinstance(reply, bytes):
                        result.body = reply
                        held.push_async_exit(slot.pop_all())
                    else:
                        url = reply
        except Rejected as rejected:
            result.code = rejected.code
        result.opt_out = ",".join(sorted(walk.opt_outs)) or None
        return result

    async def _request(self, url: URL, walk: _Walk) -> bytes | URL:
        """Sends one request. Returns the body, or the URL of a redirect."""
        try:
            async with walk.hop(), self._session.get(url, allow_redirects=False, trace_request_ctx=walk) as response:
                walk.meet(response)
                if response.status in REDIRECTS and (location := response.headers.get("Location")):
                    return parse_url(_text(location), base=url, allow_private=self.config.allow_private)
                if response.status not in (200, 203):
                    raise Rejected(_status_code(response.status))
                if walk.opt_outs and self.config.respect_opt_out:
                    raise Rejected(Code.OPT_OUT)
                walk.phase(Code.TIMEOUT_TOTAL, math.inf)
                return await read_body(response, self.config.max_bytes)
        except aiohttp.ClientError as error:
            raise Rejected(_error_code(error)) from error


class _Walk:
    """One attempt: its deadlines over all redirects, and what its responses have said."""

    def __init__(self, config: AcquireConfig) -> None:
        self.config = config
        self.result = FetchResult()
        self.visited: list[str] = []
        self.opt_outs: set[str] = set()
        self.retry_after: float | None = None
        self._left = config.total_timeout

    def visit(self, url: URL) -> None:
        if str(url) in self.visited:
            raise Rejected(Code.REDIRECT_LOOP)
        if len(self.visited) > self.config.max_redirects:
            raise Rejected(Code.TOO_MANY_REDIRECTS)
        self.result.redirects = len(self.visited)
        self.visited.append(str(url))

    def meet(self, response: aiohttp.ClientResponse) -> None:
        headers = response.headers
        media_type = _text(headers.get("Content-Type", "")).partition(";")[0].strip().lower()
        self.result.http_status, self.result.content_type = response.status, media_type[:100] or None
        lines = headers.getall("X-Robots-Tag", [])
        self.opt_outs.update(refusals(lines, self.config.user_agent_token, self.config.opt_out_directives))
        self.retry_after = _seconds(headers.get("Retry-After"))

    @asynccontextmanager
    async def hop(self) -> AsyncIterator[None]:
        """Raises Rejected in the block when the deadline of its phase, or of the attempt, has passed."""
        started = asyncio.get_running_loop().time()
        self._end = started + self._left
        try:
            async with asyncio.timeout(None) as self._timeout:
                self.phase(Code.TIMEOUT_CONNECT, self.config.connect_timeout)
                yield
        except TimeoutError as error:  # of the deadline, or of the system for a dead connection
            raise Rejected(self._late) from error
        finally:
            self._left -= asyncio.get_running_loop().time() - started

    def phase(self, late: Code, seconds: float) -> None:
        """Sets the deadline of the next event, in seconds from now; the end of the attempt is a limit too."""
        if self._timeout.expired():
            return
        until = asyncio.get_running_loop().time() + seconds
        self._late, when = (late, until) if until < self._end else (Code.TIMEOUT_TOTAL, self._end)
        self._timeout.reschedule(when)


async def _connected(session: aiohttp.ClientSession, context: SimpleNamespace, params: Any) -> None:
    walk = context.trace_request_ctx
    walk.phase(Code.TIMEOUT_FIRST_BYTE, walk.config.first_byte_timeout)


def _text(header: str) -> str:
    """Returns a header's value as valid text; aiohttp keeps bytes that are not UTF-8 as lone surrogates."""
    return header.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _seconds(retry_after: str | None) -> float | None:
    """Returns the seconds of a Retry-After header, a number or a date; None if it is absent or invalid."""
    if retry_after is None:
        return None
    if retry_after.strip().isdecimal():
        return float(retry_after)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def _status_code(status: int) -> Code:
    others = {4: Code.HTTP_4XX, 5: Code.HTTP_5XX}
    return STATUS_CODES.get(status) or others.get(status // 100, Code.HTTP_OTHER)


def _error_code(error: aiohttp.ClientError) -> Code:
    """Returns the code of a failed request. Raises `error` again if it is an error of this machine."""
    if isinstance(error, (aiohttp.ClientSSLError, ssl.SSLError)) or isinstance(error.__cause__, ssl.SSLError):
        return Code.TLS
    if isinstance(error, aiohttp.ClientConnectorError):
        number = error.os_error.errno
        if number in OUR_OWN:
            raise error
        # Anything else: there is no route, or several addresses failed for several reasons.
        return ERRNO_CODES.get(number or 0, Code.UNREACHABLE)
    if isinstance(error, (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError)):
        return Code.RESET
    if isinstance(error, aiohttp.ClientPayloadError):
        return Code.TRUNCATED_BODY
    return Code.BAD_RESPONSE
