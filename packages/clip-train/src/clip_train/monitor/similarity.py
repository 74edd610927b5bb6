"""Mean cosines of the pairs of a batch, and of what are no pairs, without a matrix of them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def pair_sums(features: Mapping[str, Tensor]) -> Tensor | None:
    """Returns float32 [2 D + 1] of this rank: the sums of image and of text features, and that of the pairs' cosines.

    None without features of pairs, [B, D]. Sums of ranks can be added.
    """
    if not {"image", "text"} <= features.keys() or features["image"].shape != features["text"].shape:
        return None
    image_BD, text_BD = (features[name].detach().float() for name in ("image", "text"))
    return torch.cat([image_BD.sum(0), text_BD.sum(0), (image_BD * text_BD).sum()[None]])


def similarities(sums: Tensor, pairs: int) -> dict[str, Tensor]:
    """Returns scalars, `positive_similarity` and `negative_similarity`, of the sums over all `pairs`, at least two.

    The sum over all combinations of an image and a caption is the product of the sums.
    """
    image_D, text_D = sums[:-1].chunk(2)
    return {
        "positive_similarity": sums[-1] / pairs,
        "negative_similarity": (image_D @ text_D - sums[-1]) / (pairs * (pairs - 1)),
    }
