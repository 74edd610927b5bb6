"""Resizes learned positions and patch embeddings to the size of the model."""

from collections.abc import Collection, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip_models.errors import ClipModelsError
from clip_models.specs import ModelSpec, as_pair
from clip_models.towers.positions import resize_grid_positions, resize_text_positions

_TEXT = ("positional_embedding", "text.positional_embedding")
_IMAGE = ("visual.positional_embedding", "visual.attnpool.positional_embedding", "visual.trunk.pos_embed")
_PATCHES = "visual.trunk.patch_embed.proj.weight"


def resize_to(
    model: nn.Module, spec: ModelSpec, tensors: Mapping[str, Tensor], sure_of: Collection[str], where: str
) -> dict[str, Tensor]:
    """Returns the tensors with positions, and the patches of timm's ViT, in the size of `model`.

    Resizes if `sure_of` has the size (`image_size`, `context_length`). Otherwise raises ClipModelsError with both sizes
    and the flag, if nothing else differs; other differences are left to the comparison with the model.
    """
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    resized = dict(tensors)
    fits_otherwise = shapes.keys() == tensors.keys() and all(
        tensors[name].shape == shape for name, shape in shapes.items() if name not in (*_IMAGE, *_TEXT)
    )
    for name in (*_IMAGE, *_TEXT, _PATCHES):
        if name not in tensors or name not in shapes:
            continue
        old, new = tensors[name], shapes[name]
        fixed = slice(0, 2) if name == _PATCHES else slice(-1, None)  # the axes that are no length
        if old.shape == new or len(old.shape) != len(new) or old.shape[fixed] != new[fixed]:
            continue
        flag = "context_length" if name in _TEXT else "image_size"
        if flag not in sure_of and not fits_otherwise:
            continue
        if flag not in sure_of:
            size = spec.text.context_length if name in _TEXT else "{}x{}".format(*as_pair(spec.vision.image_size))
            raise ClipModelsError(
                f"{where} has {name} {list(old.shape)}, and {spec.name!r} with {flag} {size} has {list(new)}; ask for"
                f" the size of the weights, or for force_{flag}={size}, which resizes them"
            )
        if name in _TEXT:
            resized[name] = resize_text_positions(old, new[0])
        elif name == _PATCHES:
            resized[name] = resample_patches(old, (new[2], new[3]))
        else:
            grid = _grid(model, spec)
            prefix = new[-2] - grid[0] * grid[1]
            table = resize_grid_positions(old.reshape(old.shape[-2:]), grid, prefix=prefix)
            resized[name] = table.reshape(new)
    return resized


def resample_patches(kernel_OIHW: Tensor, size: tuple[int, int]) -> Tensor:
    """Returns the embedding for patches of another size, whose output of a resized patch is nearly the same (float32).

    It is the pseudo-inverse of bilinear resizing; FlexiViT (arXiv:2212.08013), section 3.4.
    """
    rows, columns = kernel_OIHW.shape[2:]
    basis = torch.eye(rows * columns).reshape(-1, 1, rows, columns)
    resize_ON = F.interpolate(basis, size=size, mode="bilinear", antialias=False).flatten(1)
    flat: Tensor = kernel_OIHW.float().flatten(2) @ torch.linalg.pinv(resize_ON).T
    return flat.reshape(*kernel_OIHW.shape[:2], *size)


def _grid(model: Any, spec: ModelSpec) -> tuple[int, int]:
    """Returns (rows, columns) of the positions of the image tower."""
    trunk = getattr(model.visual, "trunk", None)
    if trunk is not None:
        rows, columns = trunk.patch_embed.grid_size
        return rows, columns
    height, width = as_pair(spec.vision.image_size)
    patch = getattr(spec.vision, "patch_size", 32)  # a ResNet's stride
    return height // patch, width // patch
