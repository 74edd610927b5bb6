"""Finds the format of a file by its first bytes, so that a decoder gets files of its own format only."""

import re
import struct

FORMATS = ("jpeg", "png", "webp", "gif", "bmp", "tiff")
"""formats that are decoded"""
BMP_HEADERS = (12, 16, 40, 52, 56, 64, 108, 124)  # sizes of the header's versions
OTHER_BRANDS = (b"avif", b"avis", b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1", b"crx ")
OTHERS = (
    b"\xff\x0a",  # JPEG XL
    b"\x00\x00\x00\x0cJXL \r\n\x87\n",
    b"\x00\x00\x00\x0cjP  \r\n\x87\n",  # JPEG 2000
    b"\xff\x4f\xff\x51",
    b"\x00\x00\x01\x00",  # ICO
    b"8BPS",  # Photoshop
)
# Possessive and atomic throughout: without backtracking, no body can make the pattern slow.
_SVG = re.compile(
    rb"\s*+(?:\xef\xbb\xbf)?+(?>\s++|<\?xml[^>]*+>|<!--.*?-->|<!doctype svg[^>]*+>)*+<svg[\s>]", re.I | re.S
)


def sniff(body: bytes) -> str | None:
    """Returns a name of FORMATS, "other" for an image in another format, None for anything else."""
    if body.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if body.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if body[:4] == b"RIFF" and body[8:12] == b"WEBP":
        return "webp"
    if body.startswith((b"GIF87a", b"GIF89a")):
        return "gif"
    if body.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "tiff"
    if body.startswith(b"BM") and len(body) >= 18 and struct.unpack_from("<I", body, 14)[0] in BMP_HEADERS:
        return "bmp"
    if body.startswith(OTHERS) or (body[4:8] == b"ftyp" and body[8:12] in OTHER_BRANDS):
        return "other"
    return "other" if _SVG.match(body[:4096]) else None
