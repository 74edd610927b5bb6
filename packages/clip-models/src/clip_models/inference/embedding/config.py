"""EmbedConfig: the options of an embedding run."""

from dataclasses import dataclass
from typing import Literal

from clip_core import MAX_PIXELS, ImageMode
from clip_models.errors import ClipModelsError
from clip_models.inference.embedding.samples import IMAGE_SUFFIXES
from clip_models.specs.values import check_fields

FREE = ("device", "batch_size", "workers", "quick_gelu")
"""Options that may change when a run is continued: they change at most the last bits of a number, or the spec of the
model has them too."""


@dataclass(frozen=True, kw_only=True)
class EmbedConfig:
    """How images and captions become embeddings."""

    what: Literal["image", "text", "both"] = "image"
    """what is embedded; both takes pairs, and a pair counts only as a whole"""
    format: Literal["parquet", "npy"] = "parquet"
    """parquet: a key and a list of fixed length in each row. npy: a matrix, with its keys as a JSON list beside it"""
    dtype: Literal["float32", "float16"] = "float32"
    """type of the written numbers"""
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
    """threads that decode images; 0 is one for each processor, at most 16"""
    part_rows: int = 10_000
    """samples of one output file; a stopped run continues after the last complete one"""
    image_column: str = ""
    """column of a table with images as bytes, or their paths; without it the first of the usual names"""
    text_column: str = ""
    """column of a table with captions; without it caption, text or txt"""
    key_column: str = ""
    """column of a table with keys; without it key, or else the file's name and the number of the row"""
    max_pixels: int = MAX_PIXELS
    """images with more are rejected before they are decoded"""
    image_mode: ImageMode = "standard"
    """how images become RGB: standard applies the EXIF orientation, scales 16-bit and float values and puts
    transparency on white; openclip does neither, as OpenCLIP"""
    image_member: str = ""
    """of a tar or folder: extensions of the images, the preferred one first, as in "jpg;rgb.png"; without it the
    usual ones"""
    caption_member: str = ""
    """of a tar or folder: extensions of the captions, as in "cap;txt"; without it txt, or json with a caption_field"""
    caption_field: str = ""
    """field of a JSON caption_member that holds the caption; of several caption_members, of those that end in json"""
    key_ends: Literal["first-dot", "last-dot"] = "first-dot"
    """where the key of a tar's member ends: first-dot is webdataset's rule; last-dot is for names that contain
    dots, as IMG_2020.05.01.jpg"""

    @property
    def kinds(self) -> tuple[str, ...]:
        """image, text or both"""
        return ("image", "text") if self.what == "both" else (self.what,)

    def asked_member(self, kind: str) -> str:
        """Returns the extensions that were given for image or text; "" for the usual ones."""
        return self.image_member if kind == "image" else self.caption_member

    def members(self, kind: str) -> tuple[str, ...]:
        """Returns the lower-case extensions, without a leading dot, of images (image) or captions (text)."""
        captions = ("json" if self.caption_field else "txt",)
        usual = tuple(suffix[1:] for suffix in IMAGE_SUFFIXES) if kind == "image" else captions
        asked = (name.strip().lower().removeprefix(".") for name in self.asked_member(kind).split(";"))
        return tuple(filter(None, asked)) or usual

    def field_of(self, name: str) -> str:
        """Returns the field that holds the caption of a member or file; "" if all of it is the caption."""
        return self.caption_field if len(self.members("text")) == 1 or name.lower().endswith("json") else ""

    def __post_init__(self) -> None:
        check_fields(self, "embed: ", "batch_size", "part_rows", "max_pixels")
        if self.workers < 0:
            raise ClipModelsError(f"embed: workers {self.workers} must not be negative")
        for name in ("image_member", "caption_member"):
            asked = getattr(self, name)
            if asked and (set(asked) <= set("; .") or set(asked) & set(",*?/")):
                raise ClipModelsError(
                    f'embed: {name} {asked!r} must be extensions with ; between them, as "jpg;rgb.png"'
                )
        if not self.caption_field and any(member.endswith("json") for member in self.members("text")):
            raise ClipModelsError(
                f"embed: caption_member {self.caption_member!r} needs caption_field, the field that holds the caption"
            )
