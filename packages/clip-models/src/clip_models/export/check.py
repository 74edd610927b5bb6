"""The self-check of an exported model: the same inputs through the model and through its exported form."""

from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip_core.console import progress_bar
from clip_models.errors import ClipModelsError
from clip_models.export.formats import Exported

TOLERANCE = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 2e-2}
_BATCH = 16


@dataclass(frozen=True, kw_only=True)
class SelfCheck:
    """How far the exported form is from the model, on `pairs` images and captions."""

    runtime: str
    """Name and version of what ran the exported form."""
    pairs: int
    max_cosine_difference: float
    """Largest |difference| of the cosine of an image with its caption."""
    image_cosine_error: float
    """Largest 1 − cosine between the two feature vectors of an image."""
    text_cosine_error: float
    """The same of a caption."""
    tolerance: float
    """Largest error that is accepted."""

    def to_dict(self) -> dict[str, object]:
        return asdict(self)


def self_check(
    image_tower: nn.Module, text_tower: nn.Module, exported: Exported, images: Tensor, captions: Tensor, precision: str
) -> SelfCheck:
    """Compares the exported form with the towers. Raises ClipModelsError if they differ by more than is accepted."""
    image, image_error = _compare(image_tower, exported.run_image, images, "images")
    text, text_error = _compare(text_tower, exported.run_text, captions, "captions")
    similarity, theirs = ((image[i] * text[i]).sum(-1) for i in (0, 1))
    check = SelfCheck(
        runtime=exported.runtime,
        pairs=len(images),
        max_cosine_difference=(similarity - theirs).abs().max().item(),
        image_cosine_error=image_error,
        text_cosine_error=text_error,
        tolerance=TOLERANCE[precision],
    )
    worst = max(check.max_cosine_difference, image_error, text_error)
    if not worst <= check.tolerance:  # also when it is not a number
        raise ClipModelsError(
            f"the exported model is not the model: {check.runtime} gives features that differ by {worst:.2e} in cosine,"
            f" more than {check.tolerance:.0e}; nothing was written"
        )
    return check


def _compare(
    tower: nn.Module, run: Callable[[Tensor], Tensor], inputs: Tensor, what: str
) -> tuple[tuple[Tensor, Tensor], float]:
    """Returns ((features, exported features), both float64 and L2-normalised; the largest 1 − cosine between them)."""
    ours, theirs = [], []
    # Batches of other sizes than the one that was traced, an odd one at the end included.
    for batch in progress_bar(inputs.split(_BATCH), desc=f"checking {what}", leave=False):
        with torch.no_grad():
            ours.append(F.normalize(tower(batch).double(), dim=-1))
        theirs.append(F.normalize(run(batch).double(), dim=-1))
    first, second = torch.cat(ours), torch.cat(theirs)
    return (first, second), (1 - (first * second).sum(-1)).abs().max().item()
