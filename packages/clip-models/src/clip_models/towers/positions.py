"""Position embeddings: fixed ones, and learned ones brought to another size.

Shapes: L tokens, D width.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from clip_models.errors import ClipModelsError


def sin_cos_2d(width: int, grid: tuple[int, int], prefix: int = 1) -> Tensor:
    """Returns float32 [prefix + rows·columns, D]: sines and cosines of column and row; zeros for the prefix."""
    if width % 4:
        raise ClipModelsError(f"sin-cos positions need a width that 4 divides, not {width}")
    frequencies = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    rows, columns = (
        axis.reshape(-1, 1) * frequencies
        for axis in torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in grid), indexing="ij")
    )
    table = torch.cat([columns.sin(), columns.cos(), rows.sin(), rows.cos()], dim=1)
    return torch.cat([table.new_zeros(prefix, width), table]).float()


def resize_grid_positions(
    table_LD: Tensor, grid: tuple[int, int], *, old_grid: tuple[int, int] | None = None, prefix: int = 1
) -> Tensor:
    """Returns the positions of patches resized to another grid, (rows, columns); bicubic, antialiased, as in OpenCLIP.

    The first `prefix` rows (class and register tokens) stay. `old_grid` is by default a square. The result is
    [prefix + rows·columns, D] in the dtype of the table. Raises ClipModelsError if the table has another length.
    """
    patches = table_LD.shape[0] - prefix
    if old_grid is None:
        side = math.isqrt(max(patches, 0))
        old_grid = (side, side)
    if patches < 1 or old_grid[0] * old_grid[1] != patches:
        raise ClipModelsError(
            f"{table_LD.shape[0]} image positions are not {prefix} and a grid of {old_grid[0]} x {old_grid[1]}"
        )
    if old_grid == tuple(grid):
        return table_LD
    old = table_LD[prefix:].float().reshape(1, *old_grid, -1).permute(0, 3, 1, 2)
    new = F.interpolate(old, size=tuple(grid), mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([table_LD[:prefix], new[0].flatten(1).T.to(table_LD.dtype)])


def resize_text_positions(table_LD: Tensor, length: int) -> Tensor:
    """Returns the positions of a context resized to [length, D], by linear interpolation as in OpenCLIP."""
    if table_LD.shape[0] == length:
        return table_LD
    new = F.interpolate(table_LD.float().T[None], size=length, mode="linear", align_corners=False)
    return new[0].T.to(table_LD.dtype)
