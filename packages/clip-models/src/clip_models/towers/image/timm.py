"""Image towers out of the timm library: a trunk, and the pooling and projection that OpenCLIP puts on it.

Parameter names and shapes are OpenCLIP's: `trunk.` and timm's names, `head.` and proj, mlp or pool.
"""

import inspect
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from clip_core.suggest import did_you_mean
from clip_models.errors import ClipModelsError
from clip_models.extras import require
from clip_models.specs import TimmConfig, as_pair
from clip_models.towers.base import Found, ImageTower, Indices, names_under
from clip_models.towers.common import check_image


class TimmTower(ImageTower):
    """A trunk with random weights and a head; nothing is downloaded.

    Raises ClipModelsError if timm is missing, does not know the trunk or cannot build it as asked.
    """

    layouts = ("NCHW", "NLC")

    def __init__(self, config: TimmConfig, embed_dim: int, quick_gelu: bool = False) -> None:
        super().__init__()
        self.config = config
        timm = require("timm", "timm", f"the image tower {config.model_name}")
        if ":" in config.model_name or not timm.is_model(config.model_name):
            hint = did_you_mean(config.model_name, timm.list_models(), "timm.list_models() names them all", most=3)
            raise ClipModelsError(f"timm {timm.__version__} has no model {config.model_name!r}; {hint}")
        default = timm.get_pretrained_cfg(config.model_name)
        size = as_pair(config.image_size)
        options: dict[str, Any] = dict(config.model_kwargs)
        if config.drop_path is not None:
            options["drop_path_rate"] = config.drop_path
        if config.patch_dropout:
            options["patch_drop_rate"] = config.patch_dropout
        # Convolutional trunks take images of any size; the others are made for one.
        self.fixed_size = size if default is not None and default.fixed_input_size else None
        if self.fixed_size and tuple(default.input_size[1:]) != size:
            options["img_size"] = size
        self.trunk: Any
        try:
            self.trunk, width, feature_size = self._build_trunk(timm, options, embed_dim)
            self.head = self._build_head(timm, width, feature_size, embed_dim)
        except (AssertionError, RuntimeError, TypeError, ValueError) as error:
            wanted = {"pool": config.pool, "proj": config.proj, **options}
            raise ClipModelsError(f"timm cannot build {config.model_name!r} with {wanted}: {error}") from error
        convolutions = (name for name, module in self.trunk.named_modules() if isinstance(module, nn.Conv2d))
        self._stem = next(convolutions)

    def _build_trunk(
        self, timm: Any, options: dict[str, Any], embed_dim: int
    ) -> tuple[Any, int, tuple[int, int] | None]:
        """Returns (trunk, channels of its output, grid of its feature map if it has one)."""
        config = self.config
        own_pool = config.pool in ("abs_attn", "rot_attn")
        if config.proj in ("", "none") and not own_pool:
            # The classifier of the trunk is the projection, or there is none.
            classes = embed_dim if config.proj == "" else 0
            trunk = timm.create_model(config.model_name, num_classes=classes, global_pool=config.pool, **options)
            width = classes or trunk.head_hidden_size
            if width != embed_dim:
                raise ValueError(f"its output has {width} channels, and embed_dim is {embed_dim}")
            return trunk, width, None
        trunk = timm.create_model(config.model_name, **options)
        feature_size = trunk.default_cfg.get("pool_size")
        if own_pool and feature_size is None:
            raise ValueError("it has no feature map to pool")
        if own_pool:
            trunk.reset_classifier(0, global_pool="")
        else:
            trunk.reset_classifier(0, **({"global_pool": config.pool} if config.pool else {}))
        return trunk, trunk.num_features, feature_size

    def _build_head(self, timm: Any, width: int, feature_size: tuple[int, int] | None, embed_dim: int) -> nn.Sequential:
        config, layers = self.config, OrderedDict[str, nn.Module]()
        if config.pool == "abs_attn":
            layers["pool"] = timm.layers.AttentionPool2d(width, feat_size=feature_size, out_features=embed_dim)
            width = embed_dim
        elif config.pool == "rot_attn":
            layers["pool"] = timm.layers.RotAttentionPool2d(width, out_features=embed_dim)
            width = embed_dim
        if config.proj == "linear":
            layers["drop"] = nn.Dropout(config.drop)
            layers["proj"] = nn.Linear(width, embed_dim, bias=config.proj_bias)
        elif config.proj == "mlp":
            bias, drop = (True, config.proj_bias), (config.drop, 0.0)
            layers["mlp"] = timm.layers.Mlp(width, 2 * embed_dim, embed_dim, drop=drop, bias=bias)
        return nn.Sequential(layers)

    def _prepare(self, image: Tensor) -> Tensor:
        check_image(image, self.fixed_size)
        return image.to(self.trunk.get_submodule(self._stem).weight.dtype)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.trunk(self._prepare(image)))

    def _intermediates(self, inputs: Tensor, indices: Indices, stop_early: bool, normalize: bool, layout: str) -> Found:
        """Outputs of the trunk's blocks or stages. The extra tokens are `prefix`, if the trunk has such tokens."""
        run = self.trunk.forward_intermediates
        prefix = "return_prefix_tokens" in inspect.signature(run).parameters and self.trunk.num_prefix_tokens
        try:
            last, outputs = run(
                self._prepare(inputs),
                indices=list(indices) if isinstance(indices, Sequence) else indices,
                norm=normalize,
                output_fmt=layout,
                stop_early=stop_early,
                **({"return_prefix_tokens": True} if prefix else {}),
            )
        except AssertionError as error:
            raise ClipModelsError(f"{self.config.model_name} does not give such intermediates: {error}") from error
        extra = {}
        if outputs and isinstance(outputs[0], tuple):
            extra["prefix"] = [tokens for _, tokens in outputs]
            outputs = [patches for patches, _ in outputs]
        return list(outputs), extra, lambda: self.head(self.trunk.forward_head(last))

    def blocks(self) -> list[nn.Module]:
        """Returns the blocks of all stages; the trunk itself if timm lays it out otherwise."""
        lists = [
            module
            for name, module in self.trunk.named_modules()
            if name.rpartition(".")[2] == "blocks" and isinstance(module, nn.Sequential | nn.ModuleList)
        ]
        return [block for blocks in lists for block in blocks] or [self.trunk]

    def layer_groups(self) -> list[list[str]]:
        """timm's groups of the trunk, from the stem on, and the head if it has parameters."""
        helpers = require("timm.models", "timm", "the groups of a timm trunk")
        groups = helpers.group_parameters(self.trunk, self.trunk.group_matcher())
        named = [[f"trunk.{name}" for name in groups[number]] for number in sorted(groups)]
        head = names_under(self, "head")
        return [*named, head] if head else named

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.trunk.set_grad_checkpointing(enable)

    def no_weight_decay(self) -> set[str]:
        listed = self.trunk.no_weight_decay() if hasattr(self.trunk, "no_weight_decay") else set()
        return {f"trunk.{name}" for name in listed} & {name for name, _ in self.named_parameters()}
