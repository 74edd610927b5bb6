"""What every tower has beside its mathematics: its blocks and parameter groups, locking, and intermediate outputs."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from clip_models.errors import ClipModelsError

Indices = int | Sequence[int] | None
"""Which blocks: all for None, the last so many for a number, or those named (-1: the last)."""
Found = tuple[list[Tensor], dict[str, list[Tensor]], Callable[[], Tensor]]
"""Outputs of the chosen blocks, extra tokens of each by name, and what computes the features."""


class Tower(nn.Module):
    """Base of all towers. A subclass is built from (config, embed_dim, quick_gelu) and defines `forward`, `blocks`,
    `layer_groups` and, for `forward_intermediates`, `_intermediates`."""

    modality: ClassVar[str]
    layouts: ClassVar[tuple[str, ...]]
    """Values of output_fmt, the default first."""
    grad_checkpointing = False

    def blocks(self) -> list[nn.Module]:
        """Returns the repeated blocks in the order in which they run."""
        raise NotImplementedError

    def layer_groups(self) -> list[list[str]]:
        """Returns the names of the parameters in groups, from input to output."""
        raise NotImplementedError

    def forward_intermediates(
        self,
        inputs: Tensor,
        indices: Indices = None,
        stop_early: bool = False,
        normalize_intermediates: bool = False,
        intermediates_only: bool = False,
        output_fmt: str = "",
        output_extra_tokens: bool = False,
    ) -> dict[str, Any]:
        """Returns the outputs of blocks: of all, of the last so many, or of those named (see `take_indices`).

        The keys begin with the modality: `image_intermediates`, a list of [B, D, rows, columns] (output_fmt NCHW) or
        [B, L, D] (NLC); with output_extra_tokens also tokens that are not patches or words, as in
        `image_intermediates_prefix`; and `image_features` [B, E] unless intermediates_only. `stop_early` skips the
        blocks after the last one wanted if no features are. `normalize_intermediates` applies the tower's last norm.
        """
        layout = output_fmt or self.layouts[0]
        if layout not in self.layouts:
            known = " or ".join(self.layouts)
            raise ClipModelsError(f"output_fmt {output_fmt!r} is unknown; this tower gives {known}")
        stop_early = stop_early and intermediates_only
        outputs, extra, features = self._intermediates(inputs, indices, stop_early, normalize_intermediates, layout)
        key = f"{self.modality}_intermediates"
        result: dict[str, Any] = {key: outputs}
        if output_extra_tokens:
            result |= {f"{key}_{name}": tokens for name, tokens in extra.items()}
        if not intermediates_only:
            result[f"{self.modality}_features"] = features()
        return result

    def _intermediates(self, inputs: Tensor, indices: Indices, stop_early: bool, normalize: bool, layout: str) -> Found:
        raise ClipModelsError(f"{type(self).__name__} has no intermediate outputs")

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recomputes the activations inside each block in the backward pass instead of storing them."""
        self.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Returns the names of parameters that should not decay although they are matrices or embeddings."""
        return set()


class ImageTower(Tower):
    """float [B, 3, H, W], normalised, → [B, embed_dim]."""

    modality = "image"
    layouts: ClassVar[tuple[str, ...]] = ("NCHW",)

    def __init__(self) -> None:
        super().__init__()
        self.frozen_statistics: list[str] = []

    def lock(self, unlocked_groups: int = 0, freeze_bn_stats: bool = False) -> None:
        """Freezes all but the last `unlocked_groups` groups; on request frozen batch norms keep their statistics."""
        unlock_last(self, self.layer_groups(), unlocked_groups)
        if freeze_bn_stats:
            self.freeze_locked_statistics()

    def freeze_locked_statistics(self) -> None:
        """From now on the batch norms whose parameters are all locked normalise as in eval mode."""
        self.frozen_statistics = [
            name
            for name, module in self.named_modules()
            if isinstance(module, _BatchNorm) and not any(p.requires_grad for p in module.parameters())
        ]
        self.train(self.training)

    def train(self, mode: bool = True) -> "ImageTower":
        super().train(mode)
        for name in self.frozen_statistics:
            self.get_submodule(name).eval()
        return self


class TextTower(Tower):
    """int64 [B, L], padded on the right, → [B, embed_dim]; with `output_tokens` of the config also the tokens."""

    modality = "text"
    layouts = ("NLC",)

    def lock(self, unlocked_layers: int = 0, freeze_layer_norm: bool = True) -> None:
        """Freezes all but the last `unlocked_layers` groups. Unless `freeze_layer_norm`, all norms are trained."""
        groups = self.layer_groups()
        unlock_last(self, groups, unlocked_layers)
        if not freeze_layer_norm:
            for name in (name for group in groups for name in group):
                if "norm" in type(self.get_submodule(name.rpartition(".")[0])).__name__.lower():
                    self.get_parameter(name).requires_grad_(True)


def take_indices(count: int, indices: Indices) -> list[int]:
    """Returns positions among `count` blocks. Raises ClipModelsError for an index that is out of range."""
    if indices is None:
        return list(range(count))
    if isinstance(indices, int):
        if not 0 < indices <= count:
            raise ClipModelsError(f"the last {indices} blocks of a tower of {count}: choose 1 to {count}")
        return list(range(count - indices, count))
    for index in indices:
        if not -count <= index < count:
            raise ClipModelsError(f"block {index} of a tower of {count}: choose {-count} to {count - 1}")
    if not indices:
        raise ClipModelsError("no blocks are named; None takes all")
    return [index % count for index in indices]


def names_under(module: nn.Module, *parts: str) -> list[str]:
    """Returns the names of the parameters that are a part or are under one, in the module's order."""
    return [
        name
        for name, _ in module.named_parameters()
        if any(name == part or name.startswith(f"{part}.") for part in parts)
    ]


def group_stack(
    module: nn.Module, start: Sequence[str], blocks: Sequence[str], end: Sequence[str], head: Sequence[str]
) -> list[list[str]]:
    """Returns the parameters of `start`; of each block, the last with those of `end`; and of `head`. None is empty."""
    groups = [names_under(module, *parts) for parts in (start, *((block,) for block in blocks), head)]
    groups[-2] += names_under(module, *end)
    return [group for group in groups if group]


def unlock_last(module: nn.Module, groups: list[list[str]], unlocked: int) -> None:
    """Freezes the parameters of all groups but the last `unlocked`, which are trained."""
    if unlocked < 0:
        raise ClipModelsError(f"{unlocked} unlocked groups: choose 0 to {len(groups)}")
    for index, group in enumerate(groups):
        for name in group:
            module.get_parameter(name).requires_grad_(index >= len(groups) - unlocked)
