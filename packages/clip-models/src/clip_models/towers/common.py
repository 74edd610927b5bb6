"""What several towers share: initialisation, recomputation, checks of inputs, and the padding of captions."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from clip_models.errors import ClipModelsError
from clip_models.specs import CLIPTextConfig, TextConfig


class NoRandomInit(TorchFunctionMode):
    """Skips random initialisation: the memory stays as it is, and untouched where the system allots it lazily."""

    _SKIPPED = frozenset(
        getattr(nn.init, f"{name}_")
        for name in ("normal", "uniform", "kaiming_normal", "kaiming_uniform", "xavier_normal", "xavier_uniform")
    ) | {Tensor.normal_, Tensor.uniform_, Tensor.erfinv_}
    _WITHOUT_NUMBERS: ClassVar[Mapping[Any, Any]] = {torch.randn: torch.empty, torch.rand: torch.empty}

    def __init__(self) -> None:
        super().__init__()
        self._truncated = truncated_normal_by(lambda tensor, *_, **__: tensor)

    def __enter__(self) -> Any:
        self._truncated.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._truncated.__exit__(*error)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in self._SKIPPED:
            return args[0] if args else kwargs["tensor"]
        return self._WITHOUT_NUMBERS.get(func, func)(*args, **kwargs)


_truncated_normal: ContextVar[Callable[..., Tensor] | None] = ContextVar("truncated_normal", default=None)


@contextmanager
def truncated_normal_by(function: Callable[..., Tensor]) -> Iterator[None]:
    """Within it, in this thread, `torch.nn.init.trunc_normal_` calls `function` with its arguments.

    PyTorch's own draws again until all numbers are in range: without drawing, on memory as it is, it might not end.
    """
    _redirect_truncated_normal()
    token = _truncated_normal.set(function)
    try:
        yield
    finally:
        _truncated_normal.reset(token)


@cache
def _redirect_truncated_normal() -> None:
    # Once and for good: threads that put the original back in turn could leave each other's in its place.
    name = "_no_grad_trunc_normal_"
    own = getattr(nn.init, name)
    setattr(nn.init, name, lambda *args, **kwargs: (_truncated_normal.get() or own)(*args, **kwargs))


def call_block(block: Callable[..., Any], *args: Any, recompute: bool) -> Any:
    """Returns the block's output; with `recompute` its inner activations are recomputed in the backward pass."""
    recompute = recompute and torch.is_grad_enabled()
    return checkpoint(block, *args, use_reentrant=False) if recompute else block(*args)


def may_look(text: Tensor) -> bool:
    """Whether the values may be read: not on an accelerator, which would have to synchronise, and not in a trace.

    A tensor of a subclass may have no values, such as a fake tensor, with which memory is estimated.
    """
    return (
        type(text) is Tensor
        and text.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
    )


def check_text(text: Tensor, context_length: int, vocab_size: int) -> None:
    """Raises ClipModelsError unless `text` is [batch, 1 to context_length] token ids. Ids are read on the CPU only."""
    if text.ndim != 2 or not 0 < text.shape[1] <= context_length:
        raise ClipModelsError(f"the text tower takes [batch, up to {context_length}] token ids, not {list(text.shape)}")
    if text.dtype not in (torch.int64, torch.int32):
        raise ClipModelsError(f"the text tower takes token ids in int64, not {text.dtype}")
    if text.numel() and may_look(text) and not 0 <= int(text.min()) <= int(text.max()) < vocab_size:
        wrong = int(text[(text < 0) | (text >= vocab_size)][0])
        raise ClipModelsError(f"token id {wrong} is outside the vocabulary of {vocab_size}; use the model's tokenizer")


def cut_captions(text: Tensor, config: TextConfig) -> Tensor:
    """Returns int64 [B, L] without the columns at its right that change no feature of the tower (`spare_columns`).

    Returns all of `text` if its values may not be read.
    """
    if config.spare_columns == "none" or not text.numel() or not may_look(text):
        return text
    if config.spare_columns == "padding":
        columns = text.ne(cast(int, config.pad_id)).any(dim=0).nonzero()
        length = int(columns[-1]) + 1 if len(columns) else 1
    else:
        pool_B = pooled_at(text, cast(CLIPTextConfig, config))
        length = int(cast(Tensor, pool_B).max()) + 1
    return text[:, :length]


def pooled_at(text: Tensor, config: CLIPTextConfig) -> Tensor | None:
    """Returns int64 [B], the position in int64 [B, L] that CLIP's text tower pools; None if it pools none."""
    if config.embed_cls:
        return torch.full_like(text[:, 0], text.shape[1], dtype=torch.int64)
    match config.pool_type:
        case "argmax":
            return text.argmax(dim=-1)
        case "eos":
            return text.eq(cast(int, config.eos_id)).int().argmax(dim=-1)
        case "first":
            return torch.zeros_like(text[:, 0], dtype=torch.int64)
        case "last":
            return torch.full_like(text[:, 0], text.shape[1] - 1, dtype=torch.int64)
    return None


def valid_tokens(text_BL: Tensor, pad_id: int | None) -> Tensor:
    """Returns bool [B, L]: which tokens are not padding. Of an empty caption the first token counts, so that there is
    something to attend to and to pool."""
    valid_BL = text_BL.ne(pad_id) if pad_id is not None else torch.ones_like(text_BL, dtype=torch.bool)
    first_L = torch.arange(text_BL.shape[1], device=text_BL.device) == 0
    return valid_BL | (first_L & ~valid_BL.any(dim=1, keepdim=True))


def check_image(image: Tensor, size: tuple[int, int] | None = None) -> None:
    """Raises ClipModelsError unless `image` is a batch of normalised images, of `size` (height, width) if given."""
    if image.ndim != 4 or image.shape[1] != 3 or size not in (None, tuple(image.shape[2:])):
        height, width = size or ("height", "width")
        raise ClipModelsError(f"the image tower takes [batch, 3, {height}, {width}], not {list(image.shape)}")
    if not image.is_floating_point():
        raise ClipModelsError(f"the image tower takes normalised floats, not {image.dtype}; apply mean and std")
