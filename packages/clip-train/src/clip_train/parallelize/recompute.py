"""Activation checkpointing: what a block computes is computed again in the backward pass instead of being kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
    noop_context_fn,
)

from clip_models.towers.image.resnet import without_statistics

_KEPT = frozenset(
    getattr(torch.ops.aten, name).default
    for name in (
        *("mm", "addmm", "bmm", "baddbmm", "convolution", "_scaled_mm"),
        *("_scaled_dot_product_flash_attention", "_scaled_dot_product_efficient_attention"),
        *("_scaled_dot_product_cudnn_attention", "_scaled_dot_product_flash_attention_for_cpu"),
    )
)
"""Operators that take nearly all of the time of a block, and whose results are a small part of its memory."""
Contexts = Callable[[], tuple[AbstractContextManager[Any], AbstractContextManager[Any]]]


def recompute_blocks(blocks: Iterable[nn.Module], how: str) -> None:
    """Makes each block compute its activations again: all (`full`), or all but the results of products (`ops`)."""
    for block in blocks:
        block.forward = _recomputed(block, block.forward, how)


def _recomputed(block: nn.Module, forward: Callable[..., Any], how: str) -> Callable[..., Any]:
    kept: Contexts = _keep_products if how == "ops" else noop_context_fn
    norms = any(isinstance(module, _BatchNorm) for module in block.modules())

    def contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        first, again = kept()
        return first, _once_only(block, again)

    def call(*args: Any, **options: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **options)
        # The compiler knows no other contexts than the default and those of selections. It keeps side effects out of
        # what it computes again, so that batch norms need none.
        if norms and not torch.compiler.is_compiling():
            options["context_fn"] = contexts
        elif how == "ops":
            options["context_fn"] = kept
        return checkpoint(forward, *args, use_reentrant=False, **options)

    return call


def _policy(context: Any, operator: Any, *args: Any, **options: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operator in _KEPT else CheckpointPolicy.PREFER_RECOMPUTE


_keep_products = partial(create_selective_checkpoint_contexts, _policy)


@contextmanager
def _once_only(block: nn.Module, again: AbstractContextManager[Any]) -> Iterator[None]:
    """Has `again`, and leaves the running statistics of batch norms alone: the first pass has updated them."""
    with again, without_statistics(block):
        yield
