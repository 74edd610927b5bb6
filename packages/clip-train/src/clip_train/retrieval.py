"""Image-text retrieval over a whole set of pairs: ranks that depend neither on the ranks of a run nor on tiles.

Definitions are those of clip-eval. Every distinct image (by the hash of its bytes) and every distinct caption is one
query and one candidate; they belong together if any sample holds both. Ties count against the model: a true answer
ranks behind every wrong candidate with the same score. Features are rounded to multiples of 2^-26, so that float64
holds every partial sum of a product exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from clip_train.parallel import World

RECALL_AT = (1, 5, 10)
GRID = 2.0**26
TILE = 1 << 22  # similarities held at once: 48 MB in both precisions


@dataclass(frozen=True)
class Identities:
    """What tells the N samples of a set apart, without their contents."""

    image: np.ndarray
    """S16 [N]: hash of the image"""
    caption: np.ndarray
    """S16 [N]: hash of the caption; zeros for an empty one, which is left out"""
    tokens: np.ndarray
    """S16 [N]: hash of the tokens; captions with the same tokens get the same features"""


@dataclass(frozen=True)
class Pairs:
    """The distinct images and captions of a set."""

    image_row: np.ndarray
    """int64 [I]: the first sample of each image"""
    text_row: np.ndarray
    """int64 [T]: a sample that has the features of each caption"""
    pairs: np.ndarray
    """int64 [2, P]: the images and captions that belong together"""


def pairs_of(ids: Identities) -> Pairs:
    """Returns the distinct images and captions of the samples that have a caption."""
    kept = np.flatnonzero(ids.caption != b"")
    _, image_row, image = np.unique(ids.image[kept], return_index=True, return_inverse=True)
    _, text_row, text = np.unique(ids.caption[kept], return_index=True, return_inverse=True)
    _, first, same = np.unique(ids.tokens[kept], return_index=True, return_inverse=True)
    text_row = first[same[text_row]]
    return Pairs(kept[image_row], kept[text_row], np.unique(np.stack([image, text]), axis=1).astype(np.int64))


def ranks_of(image: Tensor, text: Tensor, pairs: np.ndarray, world: World) -> tuple[np.ndarray, np.ndarray]:
    """Returns how many wrong candidates come before the best true one, for images, int64 [I], and captions, int64 [T].

    `image`, `text`: unit vectors, float32 [I, D] and [T, D], the same on every rank. The ranks share the images.
    """
    device = world.device
    left, right = _on_grid(image), _on_grid(text).to(device)
    of_image, of_text = (torch.from_numpy(side) for side in pairs)
    true = torch.cat(
        [
            (left[i].to(device) * right[t.to(device)]).sum(1).float()
            for i, t in zip(of_image.split(1 << 16), of_text.split(1 << 16), strict=True)
        ]
    )
    of_image, of_text = of_image.to(device), of_text.to(device)
    best_image = true.new_full((len(image),), -np.inf).scatter_reduce_(0, of_image, true, "amax")
    best_text = true.new_full((len(text),), -np.inf).scatter_reduce_(0, of_text, true, "amax")
    image_rank = torch.zeros(len(image), dtype=torch.int64, device=device)
    text_rank = torch.zeros(len(text), dtype=torch.int64, device=device)
    step = max(1, TILE // len(text))
    for start in range(world.rank * step, len(image), world.size * step):
        rows = slice(start, start + step)
        scores = (left[rows].to(device) @ right.T).float()
        image_rank[rows] = (scores >= best_image[rows, None]).sum(1)
        text_rank += (scores >= best_text).sum(0)
    with world.collective():
        image_rank, text_rank = world.sum(image_rank), world.sum(text_rank)
    # The best true candidates have been counted too, each for its image and its caption.
    image_rank -= torch.bincount(of_image[true == best_image[of_image]], minlength=len(image))
    text_rank -= torch.bincount(of_text[true == best_text[of_text]], minlength=len(text))
    return image_rank.cpu().numpy(), text_rank.cpu().numpy()


def retrieval(image: Tensor, text: Tensor, ids: Identities, world: World) -> dict[str, float]:
    """Returns recall at 1, 5 and 10, the mean and the median rank (1 is the best) of both directions.

    `image`, `text`: L2-normalised features of N samples, float32 [N, D]; none of a set without a caption.
    """
    found = pairs_of(ids)
    if not len(found.text_row):
        return {}
    image_rank, text_rank = ranks_of(image[found.image_row], text[found.text_row], found.pairs, world)
    return {**_measures("image_to_text", image_rank), **_measures("text_to_image", text_rank)}


def _measures(name: str, rank: np.ndarray) -> dict[str, float]:
    recalls = {f"{name}_recall@{k}": float((rank < k).mean()) for k in RECALL_AT}
    return {**recalls, f"{name}_mean_rank": float(rank.mean()) + 1, f"{name}_median_rank": float(np.median(rank)) + 1}


def _on_grid(features: Tensor) -> Tensor:
    return (features.double() * GRID).round() / GRID


def joined(parts: Sequence[Identities]) -> Identities:
    """Returns the identities of several parts of a set, in their order."""
    columns = zip(*((part.image, part.caption, part.tokens) for part in parts), strict=True)
    return Identities(*(np.concatenate(column) for column in columns))
