"""The sample id: BLAKE2b-128 of (canonical URL, NUL, caption), the join key of every stage and sidecar."""

import hashlib
from urllib.parse import urlsplit, urlunsplit

DEFAULT_PORTS = {"http": 80, "https": 443}


def canonical_url(url: str) -> str:
    """Returns one spelling for URLs that name the same resource (RFC 3986 §6.2.2–6.2.3, without percent-decoding).

    Scheme and host in lower case, no default port, no fragment, "/" for an empty path. A URL that cannot be split is
    returned stripped: it has an id, and the fetch rejects it with a reason.
    """
    text = url.strip()
    try:
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return text
    if not parts.scheme or not host:
        return text
    if ":" in host:
        host = f"[{host}]"
    user = parts.netloc.rpartition("@")[0]
    netloc = f"{user}@{host}" if user else host
    if port is not None and port != DEFAULT_PORTS.get(parts.scheme):
        netloc += f":{port}"
    return urlunsplit((parts.scheme, netloc, parts.path or "/", parts.query, ""))


def uid(url: str | None, caption: str | None) -> bytes:
    """Returns the 16-byte id of a sample. A missing URL or caption counts as an empty string."""
    text = f"{canonical_url(url or '')}\0{caption or ''}"
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
