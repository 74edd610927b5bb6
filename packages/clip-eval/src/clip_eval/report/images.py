"""Stored images as small data: URIs. They are decoded and encoded again: no byte of a file reaches the page."""

import base64
import io
from functools import lru_cache
from typing import Any

from PIL import Image

from clip_core.images import load_image
from clip_data.dataset import Dataset, parse_key
from clip_eval.report.html import Html, fill, foreign, join

SIDE = 112  # pixels; drawn at half to full size
COLUMNS = ["uid", "image_offset", "image_length", "caption"]
MISSING = Html('<span class="missing">no image</span>')


class Images:
    """Thumbnails of one dataset's samples, found by their keys. Those that were taken down are not shown."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self._gone = dataset.taken_down()
        self._rows = lru_cache(maxsize=64)(lambda unit: dataset.sidecar(unit, COLUMNS))

    def describe(self, key: str) -> dict[str, Any]:
        """Returns the sample's row (COLUMNS) with the name of its shard; empty if it must not be shown."""
        ordinal, row = parse_key(key) or (len(self.dataset.units), 0)
        for unit in self.dataset.units[ordinal : ordinal + 1]:
            for found in self._rows(unit).slice(row, 1).to_pylist():
                return {} if found["uid"] in self._gone else {**found, "shard": unit.shard_name}
        return {}

    def thumbnail(self, key: str) -> Html:
        """Returns an <img> of at most SIDE pixels, or a placeholder if no image decodes."""
        row = self.describe(key)
        if not row.get("image_length"):
            return MISSING
        try:
            start = row["image_offset"]
            data = self.dataset.store.read_bytes(row["shard"], start, start + row["image_length"])
            small = load_image(data)
        except (OSError, ValueError):
            return MISSING  # a damaged sample is shown as missing; evaluation and training count it
        small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        small.save(buffer, "JPEG", quality=82)
        source = Html("data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode())
        caption = (row["caption"] or "")[:500]
        return fill('<img src="{}" alt="{}" title="{}" width="{}" height="{}">', source, caption, caption, *small.size)

    def card(self, key: str, *lines: Any, tone: str = "") -> Html:
        """Returns an image with its caption and further lines below."""
        caption = foreign(self.describe(key).get("caption") or "", 90)
        below = [fill("<small>{}</small>", line) for line in lines]
        return fill('<div class="card {}">{}<p>{}</p>{}</div>', tone, self.thumbnail(key), caption, join(below))
