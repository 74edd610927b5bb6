"""The config of the acquire stage."""

import re
from dataclasses import dataclass
from typing import Any, Literal

from clip_core import MAX_PIXELS
from clip_core.config import to_dict
from clip_data.errors import ClipDataError

SPEED_ONLY = ("concurrency", "per_host", "decode_threads")


@dataclass(frozen=True, kw_only=True)
class AcquireConfig:
    """How images are fetched, rejected and stored. Raises ClipDataError for an invalid value."""

    image_size: int = 256
    """side of the stored image in pixels; resize_mode says which side"""
    resize_mode: Literal["no", "border", "keep_ratio", "keep_ratio_largest", "center_crop"] = "keep_ratio"
    """keep_ratio: shorter side = image_size; keep_ratio_largest: longer side; border: longer side, padded with white
    to a square; center_crop: shorter side, cropped to a square; no: no resize"""
    resize_only_if_bigger: bool = True
    """do not resize, pad or crop an image whose deciding side is at most image_size"""
    encode_format: Literal["jpg", "png", "webp"] = "jpg"
    """format of the stored images"""
    encode_quality: int = 95
    """jpg and webp: 1 to 100; png: compression level 0 to 9"""
    skip_reencode: bool = False
    """store the fetched bytes unchanged (with metadata) if they are an upright, opaque, still image of the right size
    and format"""
    min_image_size: int = 0
    """reject images with a side below this many pixels"""
    max_aspect_ratio: float = 0.0
    """reject images whose longer side is more than this many times the shorter one; 0: no limit"""
    max_pixels: int = MAX_PIXELS
    """reject larger images by their header, before decoding; 64 million pixels cover nearly all cameras and phones,
    and take at most 0.5 GB while one image is decoded"""
    max_bytes: int = 20_000_000
    """reject larger bodies, as soon as so many bytes were received or announced"""
    connect_timeout: float = 5.0
    """seconds for name lookup, connection and encryption together"""
    first_byte_timeout: float = 10.0
    """seconds from the request to the end of the response header"""
    total_timeout: float = 20.0
    """seconds for one attempt with redirects and body, without the wait for a free slot"""
    retries: int = 1
    """further attempts after a status 429 or 5xx, a reset or a truncated body"""
    retry_backoff: float = 0.5
    """seconds before the first retry, doubled for each further one; Retry-After of the server has precedence"""
    retry_after_cap: float = 10.0
    """longest Retry-After to wait for, in seconds; with a longer one the URL is not tried again"""
    max_redirects: int = 5
    """redirects followed, each under the same rules as the first URL"""
    allow_private: bool = False
    """also fetch from loopback, private and other non-public addresses"""
    respect_opt_out: bool = True
    """reject images whose server opts out by X-Robots-Tag; the directives are recorded in any case"""
    opt_out_directives: tuple[str, ...] = ("noai", "noimageai", "noindex", "noimageindex", "noml")
    """the directives that opt out"""
    user_agent_token: str = "clip-data"
    """robot name: in the User-Agent header, and for directives that name a robot"""
    concurrency: int = 64
    """fetches at a time in one worker"""
    per_host: int = 8
    """fetches at a time from one host, in one worker"""
    decode_threads: int = 1
    """threads that decode and resize, in one worker"""

    def __post_init__(self) -> None:
        limits: dict[str, tuple[float, float]] = {
            "image_size": (1, 16_383),
            "encode_quality": (0, 9) if self.encode_format == "png" else (1, 100),
            "min_image_size": (0, 65_535),
            "max_pixels": (1, 2**31 - 1),
            "max_bytes": (1, 2**31 - 1),
            "retries": (0, 10),
            "retry_backoff": (0, 600),
            "retry_after_cap": (0, 600),
            "max_redirects": (0, 20),
            "concurrency": (1, 10_000),
            "per_host": (1, 10_000),
            "decode_threads": (1, 64),
        }
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if not low <= value <= high:
                hint = f" for encode_format = {self.encode_format!r}" if name == "encode_quality" else ""
                raise ClipDataError(f"{name} = {value} must be between {low} and {high}{hint}")
        for name in ("connect_timeout", "first_byte_timeout", "total_timeout"):
            if not 0 < getattr(self, name) <= 3600:
                raise ClipDataError(f"{name} = {getattr(self, name)} must be above 0 and at most 3600 seconds")
        if self.max_aspect_ratio and not self.max_aspect_ratio >= 1:
            raise ClipDataError(f"max_aspect_ratio = {self.max_aspect_ratio} must be at least 1, or 0 for no limit")
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", self.user_agent_token):
            raise ClipDataError(f"user_agent_token = {self.user_agent_token!r} must be letters, digits, '-' and '_'")
        for directive in self.opt_out_directives:
            if not re.fullmatch(r"[a-z][a-z-]*", directive):
                raise ClipDataError(f"opt_out_directives holds {directive!r}: directives are lower-case words")

    def identity(self) -> dict[str, Any]:
        """Returns what the stored bytes depend on: all fields except those of speed, which may differ between runs."""
        return {name: value for name, value in to_dict(self).items() if name not in SPEED_ONLY}
