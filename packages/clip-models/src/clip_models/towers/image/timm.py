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
from clip_models.towers.common import FreezesStatistics, check_image
from clip_models.towers.layers import names_under, unlock_last


class TimmTower(FreezesStatistics):
    """float [B, 3, H, W], normalised, → [B, embed_dim]. Built with random weights; nothing is downloaded.

    Errors: ClipModelsError where timm is missing, does not know the trunk or cannot build it as asked.
    """

    def __init__(self, config: TimmConfig, embed_dim: int) -> None:
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
        # Convolutional trunks take pictures of any size; the others are made for one.
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
        """(trunk, channels of its output, grid of its feature map where it has one)."""
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
        """Outputs of the trunk's blocks, or of its stages: `image_intermediates`, and `image_features` unless only
        those are asked for. `output_extra_tokens` adds `image_intermediates_prefix` where the trunk has such tokens.
        """
        run = self.trunk.forward_intermediates
        options: dict[str, Any] = {"stop_early": stop_early and intermediates_only}
        if output_extra_tokens and "return_prefix_tokens" in inspect.signature(run).parameters:
            options["return_prefix_tokens"] = True
        try:
            output = run(
                self._prepare(image),
                indices=list(indices) if isinstance(indices, Sequence) else indices,
                norm=normalize_intermediates,
                output_fmt=output_fmt,
                intermediates_only=intermediates_only,
                **options,
            )
        except AssertionError as error:
            raise ClipModelsError(f"{self.config.model_name} does not give such intermediates: {error}") from error
        outputs = output if intermediates_only else output[1]
        result: dict[str, Tensor | list[Tensor]] = {}
        if outputs and isinstance(outputs[0], tuple):
            result["image_intermediates_prefix"] = [prefix for _, prefix in outputs]
            outputs = [patches for patches, _ in outputs]
        result["image_intermediates"] = list(outputs)
        if not intermediates_only:
            result["image_features"] = self.head(self.trunk.forward_head(output[0]))
        return result

    def blocks(self) -> list[nn.Module]:
        """The blocks of all stages; of a trunk that timm lays out otherwise, the trunk."""
        lists = [
            module
            for name, module in self.trunk.named_modules()
            if name.rpartition(".")[2] == "blocks" and isinstance(module, nn.Sequential | nn.ModuleList)
        ]
        return [block for blocks in lists for block in blocks] or [self.trunk]

    def layer_groups(self) -> list[list[str]]:
        """timm's groups of the trunk, from the stem on, and the head where it has parameters."""
        helpers = require("timm.models", "timm", "the groups of a timm trunk")
        groups = helpers.group_parameters(self.trunk, self.trunk.group_matcher())
        named = [[f"trunk.{name}" for name in groups[number]] for number in sorted(groups)]
        head = names_under(self, "head")
        return [*named, head] if head else named

    def lock(self, unlocked_groups: int = 0, freeze_bn_stats: bool = False) -> None:
        """Train the last `unlocked_groups` groups only; on request the locked batch norms keep their statistics."""
        unlock_last(self, self.layer_groups(), unlocked_groups)
        if freeze_bn_stats:
            self.freeze_locked_statistics()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.trunk.set_grad_checkpointing(enable)

    def no_weight_decay(self) -> set[str]:
        """What timm says of the trunk."""
        listed = self.trunk.no_weight_decay() if hasattr(self.trunk, "no_weight_decay") else set()
        return {f"trunk.{name}" for name in listed} & {name for name, _ in self.named_parameters()}
