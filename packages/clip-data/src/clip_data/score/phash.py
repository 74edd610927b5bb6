"""The 64-bit perceptual hash of an image (pHash): signs of its lowest frequencies against their median."""

import math

import numpy as np
from PIL import Image

SIDE = 32  # the image is shrunk to SIDE × SIDE grey pixels
LOW = 8  # and its LOW × LOW lowest frequencies are kept
BASIS = np.array([[2 * math.cos(math.pi * k * (2 * n + 1) / (2 * SIDE)) for n in range(SIDE)] for k in range(LOW)])


def phash(grey: Image.Image) -> int:
    """Returns the hash of an image of mode L, an unsigned 64-bit integer; frequency (0, 0) is the most significant bit.

    Its bits are those of `imagehash.phash` (same resize, same type-II DCT), except that coefficients are rounded to
    1e-6 first, so that floating-point noise does not decide the bit of a zero coefficient of a symmetric or flat
    image. All images of one flat colour therefore share a hash (black has 0, every other grey 2**63), and so do
    images whose content is lost at 32 × 32 pixels.
    """
    pixels = np.asarray(grey.resize((SIDE, SIDE), Image.Resampling.LANCZOS), dtype=np.float64)
    frequencies = np.round(BASIS @ pixels @ BASIS.T, 6)
    bits = frequencies > np.median(frequencies)
    return int.from_bytes(np.packbits(bits).tobytes(), "big")
