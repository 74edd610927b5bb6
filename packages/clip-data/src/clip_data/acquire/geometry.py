"""The stored size of an image: img2dataset's resize modes, exact to the pixel."""

from dataclasses import dataclass

from clip_data.acquire.codes import Code, Rejected
from clip_data.acquire.config import AcquireConfig

MAX_SIDE = {"jpg": 65_500, "png": 2**31 - 1, "webp": 16_383}  # jpg: what libjpeg accepts


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """How an image becomes its stored form: crop `box`, scale it to `size`, pad it to `canvas`."""

    box: tuple[float, float, float, float]
    """left, top, right, bottom in pixels of the source"""
    size: tuple[int, int]
    """width, height"""
    canvas: tuple[int, int]
    """width, height of the result, with the image in its middle"""
    enlarges: bool

    @property
    def changes(self) -> bool:
        return self.box != (0, 0, *self.size) or self.canvas != self.size


def plan_geometry(width: int, height: int, config: AcquireConfig) -> Geometry:
    """Returns the geometry of an upright image of `width` × `height` pixels. Raises Rejected: pixel_cap or side_cap."""
    geometry = _geometry(width, height, config)
    if geometry.canvas[0] * geometry.canvas[1] > config.max_pixels:  # a thin line enlarged to a wide one
        raise Rejected(Code.PIXEL_CAP)
    if max(geometry.canvas) > MAX_SIDE[config.encode_format]:
        raise Rejected(Code.SIDE_CAP)
    return geometry


def _geometry(width: int, height: int, config: AcquireConfig) -> Geometry:
    side, whole = config.image_size, (0, 0, width, height)
    longer_decides = config.resize_mode in ("border", "keep_ratio_largest")
    deciding = max(width, height) if longer_decides else min(width, height)
    enlarges = deciding <= side
    if config.resize_mode == "no" or (config.resize_only_if_bigger and enlarges):
        return Geometry(box=whole, size=(width, height), canvas=(width, height), enlarges=False)
    scale = side / deciding
    scaled = (max(1, round(width * scale)), max(1, round(height * scale)))
    if config.resize_mode == "border":
        return Geometry(box=whole, size=scaled, canvas=(side, side), enlarges=enlarges)
    if config.resize_mode == "center_crop":
        left, top = (scaled[0] - side) // 2, (scaled[1] - side) // 2
        x, y = width / scaled[0], height / scaled[1]
        box = (left * x, top * y, (left + side) * x, (top + side) * y)
        return Geometry(box=box, size=(side, side), canvas=(side, side), enlarges=enlarges)
    return Geometry(box=whole, size=scaled, canvas=scaled, enlarges=enlarges)
