"""torch.compile, with a bounded number of graphs.

A function gets a graph for each kind of input: for training and for evaluation, for each kind of block, and one for
all lengths of captions, because a dimension that has changed once is dynamic from then on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from clip_train.errors import ClipTrainError
from clip_train.parallelize.config import ParallelConfig


def compile_parts(module: nn.Module, blocks: Iterable[nn.Module], config: ParallelConfig) -> None:
    """Compiles the blocks or the module, as the config says, in place; the step is compiled by `compiled_step`."""
    if config.compile == "off":
        return
    known = torch.compiler.list_backends(exclude_tags=())
    if config.compile_backend not in known:
        raise ClipTrainError(f"train.compile_backend = {config.compile_backend!r} is not one of {', '.join(known)}")
    # One limit for all blocks: they share the code of their class.
    torch._dynamo.config.recompile_limit = config.compile_limit
    torch._dynamo.config.accumulated_recompile_limit = max(256, config.compile_limit)
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    for part in blocks if config.compile == "block" else [module] if config.compile == "model" else []:
        part.forward = torch.compile(part.forward, backend=config.compile_backend)


def compiled_step(step: Callable[..., Any], config: ParallelConfig) -> Callable[..., Any]:
    """Returns a function of the step, compiled if the config compiles steps."""
    return torch.compile(step, backend=config.compile_backend) if config.compile == "step" else step


@contextmanager
def limited(config: ParallelConfig) -> Iterator[None]:
    """Names the key of the limit in the error of a function that has reached it."""
    try:
        yield
    except torch._dynamo.exc.FailOnRecompileLimitHit as error:
        reason = next((line.strip() for line in str(error).splitlines() if "guard" in line.lower()), "")
        raise ClipTrainError(
            f"a function has been compiled train.compile_limit = {config.compile_limit} times and meets another kind "
            f"of input ({reason}): raise the limit, or set train.compile = 'off'"
        ) from error
