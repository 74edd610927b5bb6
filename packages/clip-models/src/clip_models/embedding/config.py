"""What an embedding run is told."""

from dataclasses import dataclass
from typing import Literal

from clip_models.errors import ClipModelsError
from clip_models.pictures import MAX_PIXELS
from clip_models.specs.plain import require_choice

FREE = ("device", "batch_size", "workers", "quick_gelu")
"""Settings that may change when a run is continued: they move the last bits of a number at the most, or the model's
spec says the same."""


@dataclass(frozen=True, kw_only=True)
class EmbedConfig:
    """How pictures and captions become embeddings."""

    what: Literal["image", "text", "both"] = "image"
    """what is embedded; both takes pairs, and a pair counts only as a whole"""
    format: Literal["parquet", "npy"] = "parquet"
    """parquet: a key and a list of fixed length in each row. npy: a matrix, with its keys as a JSON list beside it"""
    dtype: Literal["float32", "float16"] = "float32"
    """type of the numbers that are written"""
    normalize: bool = True
    """scale every embedding to length 1"""
    precision: str = "fp32"
    """precision of the model: fp32, bf16, fp16, pure_bf16, pure_fp16, amp, amp_bf16"""
    quick_gelu: bool = False
    """the weights were trained with QuickGELU"""
    device: str = "auto"
    """cpu, cuda, cuda:1, …; auto is the accelerator where there is one"""
    batch_size: int = 64
    """samples that the model takes at once"""
    workers: int = 0
    """threads that decode pictures; 0 is one for each processor, 16 at the most"""
    part_rows: int = 10_000
    """samples of one output file; a run that was stopped goes on after the last whole one"""
    image_column: str = ""
    """of a table: pictures as bytes, or their paths; without it the first of the usual names"""
    text_column: str = ""
    """of a table: captions; without it caption, text or txt"""
    key_column: str = ""
    """of a table: keys; without it key, or else the file's name and the number of the row"""
    max_pixels: int = MAX_PIXELS
    """pictures with more are rejected before they are decoded"""
    upright: bool = False
    """turn pictures as their EXIF orientation says, which OpenCLIP does not do"""

    def __post_init__(self) -> None:
        for name, choices in (
            ("what", ("image", "text", "both")),
            ("format", ("parquet", "npy")),
            ("dtype", ("float32", "float16")),
        ):
            require_choice(f"embed: {name}", getattr(self, name), choices)
        for name in ("batch_size", "part_rows", "max_pixels"):
            if getattr(self, name) < 1:
                raise ClipModelsError(f"embed: {name} {getattr(self, name)} must be positive")
        if self.workers < 0:
            raise ClipModelsError(f"embed: workers {self.workers} must not be negative")
