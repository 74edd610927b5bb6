"""The closed list of reasons why a URL is rejected.

An exception without a code is in the sidecar as `unexpected:<exception type>`, and is a bug to report.
"""

from __future__ import annotations

import errno
from enum import StrEnum

# Errors of this machine, not of a server: first of connections, then of the disk.
OUR_OWN = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


class Code(StrEnum):
    """One reason. Its value is in the sidecar's `error` column and in the counts of commit records."""

    error_class: str
    """the sidecar's `error_class`: url, connection, timeout, http, policy, body or image"""
    transient: bool
    """whether the same URL may succeed another day"""
    retried: bool
    """whether it is tried again within seconds: transient errors that arrive quickly"""
    meaning: str

    def __new__(cls, error_class: str, value: str, transient: bool, retried: bool, meaning: str) -> Code:
        code = str.__new__(cls, value)
        code._value_ = value
        code.error_class, code.transient, code.retried, code.meaning = error_class, transient, retried, meaning
        return code

    # fmt: off
    MISSING_URL = "url", "missing_url", False, False, "the row has no URL"
    MALFORMED_URL = "url", "malformed_url", False, False, "no host, an invalid port or invalid characters"
    SCHEME_NOT_ALLOWED = "url", "scheme_not_allowed", False, False, "neither http nor https"
    URL_CREDENTIALS = "url", "url_credentials", False, False, "a user name or password inside the URL"
    PRIVATE_ADDRESS = "url", "private_address", False, False, "the host is not on the public internet"

    DNS_NOT_FOUND = "connection", "dns_not_found", False, False, "the host name does not exist"
    DNS_FAILURE = "connection", "dns_failure", True, False, "the name servers did not answer"
    REFUSED = "connection", "refused", True, False, "nothing listens on the port"
    UNREACHABLE = "connection", "unreachable", True, False, "no route to the host"
    RESET = "connection", "reset", True, True, "the server closed the connection before its response"
    TLS = "connection", "tls", False, False, "no trusted encrypted connection"

    TIMEOUT_CONNECT = "timeout", "timeout_connect", True, False, "no connection in time"
    TIMEOUT_FIRST_BYTE = "timeout", "timeout_first_byte", True, False, "no complete response header in time"
    TIMEOUT_TOTAL = "timeout", "timeout_total", True, False, "not finished in time, redirects included"

    HTTP_DENIED = "http", "http_denied", False, False, "status 401, 402, 403, 407 or 451"
    HTTP_404 = "http", "http_404", False, False, "status 404: not found"
    HTTP_410 = "http", "http_410", False, False, "status 410: gone for good"
    HTTP_429 = "http", "http_429", True, True, "status 429: too many requests"
    HTTP_4XX = "http", "http_4xx", False, False, "any other status 400 to 499"
    HTTP_5XX = "http", "http_5xx", True, True, "status 500 to 599"
    HTTP_OTHER = "http", "http_other", False, False, "a status that does not answer a plain GET"
    TOO_MANY_REDIRECTS = "http", "too_many_redirects", False, False, "more redirects than allowed"
    REDIRECT_LOOP = "http", "redirect_loop", False, False, "a redirect back to an address seen before"
    BAD_RESPONSE = "http", "bad_response", False, False, "the response is not HTTP, or its header is over the limits"

    OPT_OUT = "policy", "opt_out", False, False, "X-Robots-Tag refuses this use"

    EMPTY_BODY = "body", "empty_body", False, False, "a success without content"
    BYTE_CAP = "body", "byte_cap", False, False, "more bytes than allowed"
    TRUNCATED_BODY = "body", "truncated_body", True, True, "the body ended before its announced length"
    CONTENT_ENCODING = "body", "content_encoding", False, False, "an unrequested encoding that cannot be decoded"

    NOT_AN_IMAGE = "image", "not_an_image", False, False, "not an image: HTML, text or something else"
    FORMAT_NOT_ALLOWED = "image", "format_not_allowed", False, False, "an image in a format that is not decoded"
    DECODE_ERROR = "image", "decode_error", False, False, "a damaged or truncated image"
    PIXEL_CAP = "image", "pixel_cap", False, False, "more pixels than allowed, by its header or after resizing"
    PIXEL_FORMAT = "image", "pixel_format", False, False, "values without a defined 8-bit form"
    TOO_SMALL = "image", "too_small", False, False, "a side below min_image_size"
    ASPECT_RATIO = "image", "aspect_ratio", False, False, "a shape beyond max_aspect_ratio"
    SIDE_CAP = "image", "side_cap", False, False, "a side longer than the encode format allows"
    # fmt: on


class Rejected(Exception):
    """The row is rejected for the reason `code`."""

    def __init__(self, code: Code) -> None:
        super().__init__(code.value)
        self.code = code
