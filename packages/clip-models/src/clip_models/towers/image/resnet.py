"""OpenAI's modified ResNet: a stem of three convolutions, average pooling in front of strides, attention pooling.

Parameter names and shapes are OpenCLIP's. All activations are ReLU: the `quick_gelu` of a spec means its text tower.

Shapes: B batch, C channels, H and W of the picture or of a feature map, L = 1 + H·W.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from clip_models.errors import ClipModelsError
from clip_models.specs import ResNetConfig, as_pair
from clip_models.towers.common import FreezesStatistics, batch_norms, check_image
from clip_models.towers.layers import attend, names_under, take_indices, unlock_last
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
    """Batch norms use the batch's statistics as before, but do not count them a second time."""
    norms = [(module, module.momentum, module.num_batches_tracked) for module in batch_norms(block)]
    for norm, _, _ in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, momentum, count in norms:
            norm.momentum, norm.num_batches_tracked = momentum, count


class ModifiedResNet(FreezesStatistics):
    """float [B, 3, H, W], normalised, → [B, embed_dim].

    Pictures of another size than the spec's are taken: the positions of the pooling are resampled.
    """

    def __init__(self, config: ResNetConfig, embed_dim: int, quick_gelu: bool = False) -> None:
        super().__init__()
        self.config = config
        self.grad_checkpointing = False
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
        if torch.compiler.is_compiling():  # the compiler takes no contexts, and recomputes without side effects
            return checkpoint(block, x, use_reentrant=False)

        def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
            return nullcontext(), without_statistics(block)

        return checkpoint(block, x, use_reentrant=False, context_fn=contexts)

    def _outputs(self, image: Tensor, last: int = 4) -> list[Tensor]:
        """Outputs of the stem and of the stages up to number `last`."""
        check_image(image)
        if min(image.shape[2:]) < 32:
            raise ClipModelsError(f"a picture of {list(image.shape[2:])} pixels is less than a ResNet's stride of 32")
        # Channels last saves a tenth to a fifth of the time, but a CPU sums the statistics of batches of that layout
        # naively: the variance of 32 pictures comes out wrong in the fourth digit.
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

    def forward_intermediates(
        self,
        image: Tensor,
        indices: int | Sequence[int] | None = None,
        stop_early: bool = False,
        normalize_intermediates: bool = False,
        intermediates_only: bool = False,
        output_fmt: str = "NCHW",
        output_extra_tokens: bool = False,
    ) -> dict[str, Tensor | list[Tensor]]:
        """Outputs of the stem (0) and the stages (1 to 4): `image_intermediates`, each [B, C, H, W], and
        `image_features` unless only those are asked for.

        There is no last norm to apply and there are no extra tokens: the two options change nothing.
        """
        if output_fmt != "NCHW":
            raise ClipModelsError(f"output_fmt {output_fmt!r} is unknown; the intermediates of a ResNet are NCHW")
        taken = take_indices(5, indices)
        outputs = self._outputs(image, max(taken) if stop_early and intermediates_only else 4)
        result: dict[str, Tensor | list[Tensor]] = {"image_intermediates": [outputs[index] for index in taken]}
        if not intermediates_only:
            result["image_features"] = self.attnpool(outputs[-1])
        return result

    def blocks(self) -> list[nn.Module]:
        return [block for stage in (1, 2, 3, 4) for block in self.get_submodule(f"layer{stage}").children()]

    def layer_groups(self) -> list[list[str]]:
        """The stem; each of the four stages; the attention pooling."""
        stem = names_under(self, "conv1", "bn1", "conv2", "bn2", "conv3", "bn3")
        return [stem, *(names_under(self, f"layer{stage}") for stage in (1, 2, 3, 4)), names_under(self, "attnpool")]

    def lock(self, unlocked_groups: int = 0, freeze_bn_stats: bool = False) -> None:
        """Train the last `unlocked_groups` groups only; on request the locked batch norms keep their statistics."""
        unlock_last(self, self.layer_groups(), unlocked_groups)
        if freeze_bn_stats:
            self.freeze_locked_statistics()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        return set()
