"""Optimizers and learning-rate schedules, by name. This module does not import torch.

An optimizer is a class that extends torch.optim.Optimizer, built from the parameter groups, `optim.lr`, those of
`optim.betas` and `optim.eps` that it takes, and `optim.options`; or a function `optimizer(groups, config)` of the
parameter groups and the OptimConfig that returns such an object. A schedule is a function `schedule(seen, plan)` of the
samples seen since the end of the warm-up and the `Plan` of the run, and returns the share of the peak learning rate.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from clip_core.registry import Registry
from clip_train.optim.plan import Plan


@dataclass(frozen=True, kw_only=True)
class Known:
    """What is known of an optimizer class without the import of its library."""

    path: str
    options: tuple[str, ...] = ()
    """keyword arguments that `optim.options` may set"""
    takes: tuple[str, ...] = ("betas", "eps")
    """fields of the OptimConfig that are passed on; of the others the class has its own form, in `options`"""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """keyword arguments that are always given"""
    sharded: Mapping[str, Any] | None = field(default_factory=dict)
    """the keyword arguments that replace them for sharded weights; None if an update needs whole tensors"""
    fallback: bool = False
    """whether it updates matrices in one way and all other parameters with AdamW"""
    schedule_free: bool = False
    """whether it averages weights instead of following a schedule"""


KNOWN: dict[str, Known] = {
    # torch; fused passes over the memory once: on the token embedding, a loop over tensors costs as much as a model
    "adamw": Known(path="torch.optim:AdamW", options=("amsgrad",), fixed={"fused": True}),
    "sgd": Known(
        path="torch.optim:SGD",
        options=("momentum", "dampening", "nesterov"),
        takes=(),
        fixed={"fused": True},
        sharded={"fused": False},
    ),
    # timm
    "nadamw": Known(path="timm.optim:NAdamW", options=("caution", "corrected_weight_decay", "clipping_threshold")),
    "lamb": Known(
        path="timm.optim:Lamb",
        sharded=None,
        options=(
            *("bias_correction", "grad_averaging", "max_grad_norm", "trust_clip", "always_adapt", "caution"),
            *("decoupled_decay", "corrected_weight_decay"),
        ),
    ),
    "lars": Known(
        path="timm.optim:Lars",
        sharded=None,
        options=("momentum", "dampening", "nesterov", "trust_coeff", "trust_clip", "always_adapt"),
        takes=("eps",),
    ),
    "lion": Known(path="timm.optim:Lion", options=("caution", "corrected_weight_decay"), takes=("betas",)),
    "muon": Known(
        path="timm.optim:Muon",
        sharded=None,
        options=(
            *("momentum", "nesterov", "ns_steps", "ns_coefficients", "safety_factor", "adjust_lr_fn", "conv_mode"),
            *("normalize_spatial", "fallback_lr_scale", "algo", "scale_eps"),
        ),
        fallback=True,
    ),
    "adopt": Known(
        path="timm.optim:Adopt", options=("clip_exp", "caution", "corrected_weight_decay"), fixed={"decoupled": True}
    ),
    "adan": Known(path="timm.optim:Adan", options=("betas", "no_prox", "caution"), takes=("eps",)),
    "laprop": Known(path="timm.optim:LaProp", options=("eps", "caution", "corrected_weight_decay"), takes=("betas",)),
    "mars": Known(
        path="timm.optim:Mars",
        sharded=None,
        options=("gamma", "mars_type", "optimize_1d", "lr_1d_factor", "betas_1d", "caution"),
    ),
    "adafactor": Known(
        path="timm.optim:AdafactorBigVision",
        sharded=None,
        options=(
            *("min_dim_size_to_factor", "decay_rate", "decay_offset", "beta2_cap", "momentum", "eps"),
            *("clipping_threshold", "unscaled_wd", "caution", "corrected_weight_decay"),
        ),
        takes=(),
    ),
    # schedulefree
    "adamw-schedulefree": Known(
        path="schedulefree:AdamWScheduleFree", options=("r", "weight_lr_power"), schedule_free=True
    ),
    "radam-schedulefree": Known(
        path="schedulefree:RAdamScheduleFree",
        options=("r", "weight_lr_power", "silent_sgd_phase"),
        schedule_free=True,
    ),
    "sgd-schedulefree": Known(
        path="schedulefree:SGDScheduleFree",
        options=("momentum", "r", "weight_lr_power"),
        takes=(),
        schedule_free=True,
    ),
}

OPTIMIZERS: Registry[Callable[..., Any]] = Registry("optimizer", {name: known.path for name, known in KNOWN.items()})
SCHEDULES: Registry[Callable[[int, Plan], float]] = Registry(
    "schedule",
    {
        "cosine": "clip_train.optim.schedules:cosine",
        "constant": "clip_train.optim.schedules:constant",
        "wsd": "clip_train.optim.schedules:constant",
        "rsqrt": "clip_train.optim.schedules:rsqrt",
    },
)
