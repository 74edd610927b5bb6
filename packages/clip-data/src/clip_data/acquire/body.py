"""Reads a response body, which may be endless, compressed or truncated."""

from __future__ import annotations

import zlib

import aiohttp

from clip_data.acquire.codes import Code, Rejected

PIECE = 1 << 18


async def read_body(response: aiohttp.ClientResponse, cap: int) -> bytes:
    """Returns the decompressed body. Raises Rejected: byte_cap, empty_body, truncated_body or content_encoding.

    `cap` limits decompressed bytes; at most `cap` and one piece are held. Requires a session without automatic
    decompression.
    """
    encoding = response.headers.get("Content-Encoding", "").strip().lower()
    if encoding not in ("", "identity", "gzip", "x-gzip", "deflate"):
        raise Rejected(Code.CONTENT_ENCODING)
    if (response.content_length or 0) > cap:
        raise Rejected(Code.BYTE_CAP)
    inflate = zlib.decompressobj(wbits=47) if encoding not in ("", "identity") else None  # 47: gzip or zlib, by header
    body = bytearray()
    async for chunk in response.content.iter_any():
        while chunk:
            piece, chunk = _inflated(inflate, chunk) if inflate else (chunk, b"")
            body += piece
            if len(body) > cap:
                raise Rejected(Code.BYTE_CAP)
    if not body:
        raise Rejected(Code.EMPTY_BODY)
    if inflate and not inflate.eof:
        raise Rejected(Code.TRUNCATED_BODY)
    return bytes(body)


def _inflated(inflate: zlib._Decompress, data: bytes) -> tuple[bytes, bytes]:
    """Returns the next piece, and the compressed bytes that are left."""
    try:
        return inflate.decompress(data, PIECE), inflate.unconsumed_tail
    except zlib.error as error:
        raise Rejected(Code.CONTENT_ENCODING) from error
