"""Decides which URLs may be fetched: http and https on the public internet.

The check applies to the address of the connection: a host name is resolved inside the connector, only once.
"""

import asyncio
import errno
import re
import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import resources
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any

from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from clip_data.acquire.codes import Code, Rejected

MAX_URL = 8000  # characters; the limit of common servers
NUMERIC = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
DNS_THREADS = 32  # the lookup of a dead name holds its thread for seconds
NOT_FOUND = {getattr(socket, name, socket.EAI_NONAME) for name in ("EAI_NONAME", "EAI_NODATA", "EAI_ADDRFAMILY")}

_NETWORKS = (resources.files("clip_data.acquire") / "special_networks.txt").read_text(encoding="ascii")
NOT_PUBLIC = tuple(ip_network(line.split()[0]) for line in _NETWORKS.splitlines() if line and line[0] != "#")
PUBLIC_V6 = IPv6Network("2000::/3")  # all that is assigned; without loopback, local, unique-local and multicast
MAPPED = IPv6Network("::ffff:0:0/96")
NAT64 = IPv6Network("64:ff9b::/96")

_EXACT = re.compile(r"[A-Za-z0-9\-._~:/?#\[\]@!$&'()*+,;=%]*")  # RFC 3986: nothing to quote
_HOST_NAME = re.compile(r"[A-Za-z0-9._-]+")
_NUMBER = re.compile(r"[0-9]+|0[xX][0-9A-Fa-f]*")


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Returns whether an address is on the public internet; of a mapped or NAT64 one, whether the IPv4 address is."""
    if isinstance(address, IPv6Address):
        if address in MAPPED or address in NAT64:
            return is_public(IPv4Address(address.packed[-4:]))
        if address not in PUBLIC_V6:
            return False
    return not any(address in network for network in NOT_PUBLIC)


def parse_url(text: str | None, *, allow_private: bool, base: URL | None = None) -> URL:
    """Returns the URL to fetch, without fragment and with an unambiguous host.

    A URL that needs no quoting is kept as written, since signed URLs must not change. A relative one is joined to
    `base`. Raises Rejected with a code of the class "url".
    """
    text = (text or "").strip()
    if not text:
        raise Rejected(Code.MISSING_URL)
    if len(text) > MAX_URL or any(character < " " or character == "\x7f" for character in text):
        raise Rejected(Code.MALFORMED_URL)
    try:
        url = URL(text, encoded=_EXACT.fullmatch(text) is not None)
        url = base.join(url) if base else url
        host, port = url.raw_host, url.port
        url.host  # noqa: B018 -- decodes punycode, which aiohttp relies on
    except ValueError as error:  # of yarl
        raise Rejected(Code.MALFORMED_URL) from error
    if url.scheme and url.scheme not in ("http", "https"):
        raise Rejected(Code.SCHEME_NOT_ALLOWED)
    if not url.scheme or not host or not port:
        raise Rejected(Code.MALFORMED_URL)
    if url.raw_user is not None or url.raw_password is not None:
        raise Rejected(Code.URL_CREDENTIALS)
    address = _literal(host)
    if address is None:
        return url.with_fragment(None)
    if not (allow_private or is_public(address)):
        raise Rejected(Code.PRIVATE_ADDRESS)
    return url.with_host(str(address)).with_fragment(None)


def _literal(host: str) -> IPv4Address | IPv6Address | None:
    """Returns the address of a host that the system would read as one, in any notation; None for a name."""
    try:
        if ":" in host:
            return IPv6Address(host.partition("%")[0])
        if not _HOST_NAME.fullmatch(host):
            raise Rejected(Code.MALFORMED_URL)
        bare = host.rstrip(".")
        if _NUMBER.fullmatch(bare.rpartition(".")[2]):  # 127.1, 2130706433, 0x7f.1, 0177.0.0.1
            return IPv4Address(socket.inet_aton(bare))
    except (ValueError, OSError) as error:
        raise Rejected(Code.MALFORMED_URL) from error
    return None


class GuardedResolver(AbstractResolver):
    """Resolves names by the system, and returns only addresses that may be connected to."""

    def __init__(self, *, allow_private: bool) -> None:
        self._allow_private = allow_private
        self._threads = ThreadPoolExecutor(DNS_THREADS, thread_name_prefix="dns")

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Returns the addresses. Raises Rejected: dns_not_found, dns_failure, malformed_url or private_address."""
        lookup = partial(socket.getaddrinfo, host, port, family, socket.SOCK_STREAM, 0, socket.AI_ADDRCONFIG)
        try:
            found = await asyncio.get_running_loop().run_in_executor(self._threads, lookup)
        except UnicodeError as error:  # a label that is empty or too long
            raise Rejected(Code.MALFORMED_URL) from error
        except socket.gaierror as error:
            raise Rejected(Code.DNS_NOT_FOUND if error.errno in NOT_FOUND else Code.DNS_FAILURE) from error
        allowed = [
            ResolveResult(hostname=host, host=str(sockaddr[0]), port=port, family=family, proto=proto, flags=NUMERIC)
            for family, _, proto, _, sockaddr in found
            if self._allow_private or is_public(_plain_address(sockaddr))
        ]
        if not allowed:
            raise Rejected(Code.PRIVATE_ADDRESS)
        return allowed

    async def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


def socket_factory(*, allow_private: bool) -> Any:
    """Returns a function that makes the connector's sockets and checks addresses once more, after the resolver."""

    def make(addr_info: Any) -> socket.socket:
        family, kind, proto, _, sockaddr = addr_info
        if not (allow_private or is_public(_plain_address(sockaddr))):
            raise OSError(errno.EACCES, f"{sockaddr[0]} is not a public address")
        return socket.socket(family=family, type=kind, proto=proto)

    return make


def _plain_address(sockaddr: Sequence[Any]) -> IPv4Address | IPv6Address:
    return ip_address(str(sockaddr[0]).partition("%")[0])
