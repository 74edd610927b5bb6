"""OpenAI's modified ResNet: a stem of three convolutions, average pooling in front of strides, attention pooling.

Parameter names and shapes are OpenCLIP's. All activations are ReLU: the `quick_gelu` of a spec is for its text tower.

Shapes: B batch, C channels, H and W of the image or of a feature map, L = 1 + H·W.
"""

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from clip_models.errors import ClipModelsError
from clip_models.specs import ResNetConfig, as_pair
from clip_models.towers.base import Found, ImageTower, Indices, names_under, take_indices
from clip_models.towers.common import check_image
from clip_models.towers.layers import attend
from clip_models.towers.positions import resize_grid_positions


class Bottleneck(nn.Module):
    """1×1, 3×3 and 1×1 convolutions around a residual; a stride is an average pooling after the second."""

    expansion = 4

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, width * self.expansion, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width * self.expansion)
        nn.init.zeros_(self.bn3.weight)  # blocks start as the identity
        self.downsample: nn.Module | None = None
        if stride > 1 or channels != width * self.expansion:
            conv = nn.Conv2d(channels, width * self.expansion, 1, bias=False)
            self.downsample = nn.Sequential(OrderedDict({"0": conv, "1": nn.BatchNorm2d(width * self.expansion)}))

    def shrink(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, self.stride) if self.stride > 1 else x

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu_(self.bn1(self.conv1(x)))
        y = self.shrink(F.relu_(self.bn2(self.conv2(y))))
        y = self.bn3(self.conv3(y))
        y += x if self.downsample is None else self.downsample(self.shrink(x))
        return F.relu_(y)


class AttentionPool2d(nn.Module):
    """The mean of all positions attends to itself and to them."""

    def __init__(self, grid: tuple[int, int], width: int, heads: int, embed_dim: int) -> None:
        super().__init__()
        self.grid = grid
        self.heads = heads
        self.positional_embedding = nn.Parameter(torch.randn(grid[0] * grid[1] + 1, width) / width**0.5)
        self.k_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.c_proj = nn.Linear(width, embed_dim)
        for layer in (self.k_proj, self.q_proj, self.v_proj, self.c_proj):
            nn.init.normal_(layer.weight, std=width**-0.5)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        B, C, H, W = x_BCHW.shape
        x_BLC = x_BCHW.flatten(2).transpose(1, 2)
        positions_LC = resize_grid_positions(self.positional_embedding, (H, W), old_grid=self.grid)
        x_BLC = torch.cat([x_BLC.mean(dim=1, keepdim=True), x_BLC], dim=1) + positions_LC.to(x_BLC.dtype)
        q, k, v = self.q_proj(x_BLC[:, :1]), self.k_proj(x_BLC), self.v_proj(x_BLC)
        q, k, v = (t.view(B, -1, self.heads, C // self.heads).transpose(1, 2) for t in (q, k, v))
        return self.c_proj(attend(q, k, v).reshape(B, C))


@contextmanager
def without_statistics(block: nn.Module) -> Iterator[None]:
    """Batch norms use the statistics of the batch, but do not update their running ones a second time."""
    modules = [module for module in block.modules() if isinstance(module, _BatchNorm)]
    norms = [(module, module.momentum, module.num_batches_tracked) for module in modules]
    for norm, _, _ in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, momentum, count in norms:
            norm.momentum, norm.num_batches_tracked = momentum, count


class ModifiedResNet(ImageTower):
    """For images of another size than the config's, the positions of the pooling are resampled."""

    def __init__(self, config: ResNetConfig, embed_dim: int, quick_gelu: bool = False) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.conv1 = nn.Conv2d(3, width // 2, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width // 2)
        self.conv2 = nn.Conv2d(width // 2, width // 2, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width // 2)
        self.conv3 = nn.Conv2d(width // 2, width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        channels = width
        for stage, depth in enumerate(config.layers):
            blocks = []
            for number in range(depth):
                blocks.append(Bottleneck(channels, width << stage, stride=2 if stage and not number else 1))
                channels = (width << stage) * Bottleneck.expansion
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        height, breadth = as_pair(config.image_size)
        self.attnpool = AttentionPool2d((height // 32, breadth // 32), channels, config.heads, embed_dim)

    def stem(self, image: Tensor) -> Tensor:
        x = F.relu_(self.bn1(self.conv1(image)))
        x = F.relu_(self.bn2(self.conv2(x)))
        x = F.relu_(self.bn3(self.conv3(x)))
        return F.avg_pool2d(x, 2)

    def _block(self, block: nn.Module, x: Tensor) -> Tensor:
        if not (self.grad_checkpointing and torch.is_grad_enabled()):
            return block(x)
        if torch.compiler.is_compiling():  # the compiler supports no contexts, and recomputes without side effects
            return checkpoint(block, x, use_reentrant=False)

        def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
            return nullcontext(), without_statistics(block)

        return checkpoint(block, x, use_reentrant=False, context_fn=contexts)

    def _outputs(self, image: Tensor, last: int = 4) -> list[Tensor]:
        """Returns the outputs of the stem and of the stages up to number `last`."""
        check_image(image)
        if min(image.shape[2:]) < 32:
            raise ClipModelsError(f"an image of {list(image.shape[2:])} pixels is less than a ResNet's stride of 32")
        # Channels last saves a tenth to a fifth of the time, but a CPU sums the statistics of batches of that layout
        # naively: the variance of 32 images is wrong in the fourth digit.
        precise = self.training and image.device.type == "cpu"
        layout = torch.contiguous_format if precise else torch.channels_last
        outputs = [self.stem(image.to(self.conv1.weight.dtype, memory_format=layout))]
        for stage in range(1, last + 1):
            x = outputs[-1]
            for block in self.get_submodule(f"layer{stage}").children():
                x = self._block(block, x)
            outputs.append(x)
        return outputs

    def forward(self, image: Tensor) -> Tensor:
        return self.attnpool(self._outputs(image)[-1])

    def _intermediates(self, inputs: Tensor, indices: Indices, stop_early: bool, normalize: bool, layout: str) -> Found:
        """Outputs of the stem (0) and the stages (1 to 4). There is no last norm to apply and no extra tokens."""
        taken = take_indices(5, indices)
        outputs = self._outputs(inputs, max(taken) if stop_early else 4)
        return [outputs[index] for index in taken], {}, lambda: self.attnpool(outputs[-1])

    def blocks(self) -> list[nn.Module]:
        return [block for stage in (1, 2, 3, 4) for block in self.get_submodule(f"layer{stage}").children()]

    def layer_groups(self) -> list[list[str]]:
        """The stem; each of the four stages; the attention pooling."""
        stem = names_under(self, "conv1", "bn1", "conv2", "bn2", "conv3", "bn3")
        return [stem, *(names_under(self, f"layer{stage}") for stage in (1, 2, 3, 4)), names_under(self, "attnpool")]
