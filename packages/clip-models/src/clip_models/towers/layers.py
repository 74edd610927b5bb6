"""The layers that the native towers are made of.

Parameter names and shapes are OpenCLIP's. Parallelism and compilation are applied to the blocks from outside.

Shapes: B batch, L tokens, D width, H heads, C channels of a head.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip_models.towers.base import Indices, take_indices
from clip_models.towers.common import call_block
from clip_models.towers.products import Linear, linear


class LayerNorm(nn.LayerNorm):
    """LayerNorm at least in the precision of its weights; the result has the dtype of the input."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype != self.weight.dtype and (x.device.type != "cpu" or self.weight.dtype != torch.float32):
            # On a CPU low precision goes with float32 weights in one pass; elsewhere all must be of one dtype.
            y = F.layer_norm(x.to(self.weight.dtype), self.normalized_shape, self.weight, self.bias, self.eps)
        else:
            y = F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return y.to(x.dtype)


class QuickGELU(nn.Module):
    """x·sigmoid(1.702x), the activation that OpenAI's weights were trained with."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


def activation(quick_gelu: bool, gelu_tanh: bool = False) -> nn.Module:
    """QuickGELU, GELU or its tanh approximation."""
    return QuickGELU() if quick_gelu else nn.GELU("tanh" if gelu_tanh else "none")


class LayerScale(nn.Module):
    """A learned factor for each channel, the same one at first."""

    def __init__(self, width: int, initial: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), initial))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma.to(x.dtype)


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *, causal: bool = False, scale: float | None = None
) -> Tensor:
    """PyTorch's scaled dot-product attention: [..., L, C], [..., M, C], [..., M, C] → [..., L, C].

    In training in low precision on a CPU it is computed in float32: the gradients of the kernel take 1.2 to 5 times as
    long in bfloat16 as in float32 (20 to 197 tokens), and are no more exact.
    """
    if q.device.type == "cpu" and q.itemsize < 4 and torch.is_grad_enabled() and q.requires_grad:
        with torch.autocast("cpu", enabled=False):
            y = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), mask, is_causal=causal, scale=scale)
        return y.to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, scale=scale)


class Packed(NamedTuple):
    """The tokens of a padded batch that are computed; layers that treat tokens one by one get these alone, [N, D]."""

    place_N: Tensor
    """int64 [N]: places in the batch as [B·L], in ascending order."""
    batch: int
    length: int

    def pack(self, x_BLD: Tensor) -> Tensor:
        """[B, L, D] → [N, D]."""
        return x_BLD.flatten(0, 1).index_select(0, self.place_N)

    def pad(self, x_ND: Tensor) -> Tensor:
        """[N, D] → [B, L, D], with zeros in the other places."""
        padded = x_ND.new_zeros(self.batch * self.length, x_ND.shape[-1])
        return padded.index_copy(0, self.place_N, x_ND).unflatten(0, (self.batch, self.length))


class Attention(nn.Module):
    """Self-attention with the parameters of nn.MultiheadAttention and its initialisation."""

    def __init__(self, width: int, heads: int, causal: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.causal = causal
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor, mask: Tensor | None = None, packed: Packed | None = None) -> Tensor:
        """[B, L, D] → [B, L, D]; if packed [N, D] → [N, D]. `mask`: bool, true where a query attends to a key,
        [B or 1, 1, L, L]; instead of the causal one."""
        qkv = self.qkv(x)
        qkv = qkv if packed is None else packed.pad(qkv)
        B, L, D = *qkv.shape[:2], x.shape[-1]
        q, k, v = qkv.view(B, L, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        causal = self.causal and mask is None
        y_BHLC = attend(q, k, v, mask, causal=causal)
        y_BLD = y_BHLC.transpose(1, 2).reshape(B, L, D)
        return self.out_proj(y_BLD if packed is None else packed.pack(y_BLD))

    def qkv(self, x: Tensor) -> Tensor:
        """[..., D] → [..., 3·D]: the queries, keys and values of all heads."""
        return linear(x, self.in_proj_weight, self.in_proj_bias)

    def at(self, x_BLD: Tensor, token_B: Tensor, mask: Tensor | None = None) -> Tensor:
        """Returns what `forward` gives at one token of each sample, [B, D], at the cost of about one token.

        For one query, q·(W_k·x) is (W_kᵀ·q)·x and the mean of W_v·x is W_v times the mean of x: the tokens themselves
        are the keys and the values, with the heads as queries. The bias of the keys adds the same to all scores.
        """
        B, L, D = x_BLD.shape
        H, C = self.heads, D // self.heads
        rows = torch.arange(B, device=x_BLD.device)
        W_q, W_k, W_v = self.in_proj_weight.chunk(3)
        b_q, _, b_v = self.in_proj_bias.chunk(3)
        if mask is not None:
            mask = mask.expand(B, 1, L, L)[rows, :, token_B].unsqueeze(2)
        elif self.causal:
            mask = (torch.arange(L, device=x_BLD.device) <= token_B[:, None]).view(B, 1, 1, L)
        q_HBC = linear(x_BLD[rows, token_B], W_q, b_q).view(B, H, C).transpose(0, 1)
        q_BHD = torch.bmm(q_HBC, W_k.view(H, C, D)).transpose(0, 1)
        x_B1LD = x_BLD.to(q_BHD.dtype).unsqueeze(1)
        y_BHD = attend(q_BHD.unsqueeze(1), x_B1LD, x_B1LD, mask, scale=C**-0.5)
        y_HBC = torch.bmm(y_BHD.squeeze(1).transpose(0, 1), W_v.view(H, C, D).transpose(1, 2))
        return self.out_proj(y_HBC.transpose(0, 1).reshape(B, D) + b_v)


class MLP(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, width: int, hidden: int, act: nn.Module) -> None:
        super().__init__()
        self.c_fc = Linear(width, hidden)
        self.act = act
        self.c_proj = Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(self.act(self.c_fc(x)))


class Block(nn.Module):
    """A pre-norm residual block."""

    def __init__(self, config: Any, quick_gelu: bool, causal: bool = False) -> None:
        """`config`: that of a native tower or of a decoder."""
        super().__init__()
        width, scale = config.width, config.ls_init_value
        self.ln_1 = LayerNorm(width, config.norm_eps)
        self.attn = Attention(width, config.heads, causal)
        self.ls_1 = nn.Identity() if scale is None else LayerScale(width, scale)
        self.ln_2 = LayerNorm(width, config.norm_eps)
        self.mlp = MLP(width, int(width * config.mlp_ratio), activation(quick_gelu, config.gelu_tanh))
        self.ls_2 = nn.Identity() if scale is None else LayerScale(width, scale)

    def forward(
        self, x_BLD: Tensor, mask: Tensor | None = None, pool_B: Tensor | None = None, packed: Packed | None = None
    ) -> Tensor:
        """[B, L, D] → [B, L, D], or → [B, D] with `pool_B`, the token of each sample that is needed afterwards.

        The output of a token does not depend on the other outputs of the same block, so that the last block of a tower
        can skip nearly all of its work. With `packed` and without `pool_B`, [N, D] → [N, D].
        """
        if pool_B is None:
            x = x_BLD + self.ls_1(self.attn(self.ln_1(x_BLD), mask, packed))
        else:
            rows = torch.arange(x_BLD.shape[0], device=x_BLD.device)
            x = x_BLD[rows, pool_B] + self.ls_1(self.attn.at(self.ln_1(x_BLD), pool_B, mask))
        return x + self.ls_2(self.mlp(self.ln_2(x)))


class Transformer(nn.Module):
    """A stack of blocks; `resblocks` is what compilation, sharding and activation checkpointing are applied to."""

    def __init__(self, config: Any, quick_gelu: bool, causal: bool = False) -> None:
        super().__init__()
        self.grad_checkpointing = False
        self.resblocks = nn.ModuleList(Block(config, quick_gelu, causal) for _ in range(config.layers))

    @property
    def dtype(self) -> torch.dtype:
        """Type of the matrix products and of the residual stream."""
        attention: Any = self.resblocks[0].attn
        return attention.out_proj.weight.dtype

    def forward(
        self, x_BLD: Tensor, mask: Tensor | None = None, pool_B: Tensor | None = None, packed: Packed | None = None
    ) -> Tensor:
        """[B, L, D] → [B, L, D], or → [B, D] at the tokens `pool_B` (int64 [B]); with it, tokens outside `packed` are
        not computed."""
        *blocks, last = self.resblocks
        x = x_BLD if packed is None else packed.pack(x_BLD)
        for block in blocks:
            x = self._run(block, x, mask, packed=packed)
        return self._run(last, x if packed is None else packed.pad(x), mask, pool_B)

    def intermediates(
        self, x_BLD: Tensor, mask: Tensor | None, indices: Indices, stop_early: bool
    ) -> tuple[Tensor, list[Tensor]]:
        """Returns (the last output, the outputs of the chosen blocks from input to output); see `take_indices`."""
        taken = take_indices(len(self.resblocks), indices)
        outputs = []
        for index, block in enumerate(self.resblocks[: max(taken) + 1] if stop_early else self.resblocks):
            x_BLD = self._run(block, x_BLD, mask)
            if index in taken:
                outputs.append(x_BLD)
        return x_BLD, outputs

    def _run(
        self,
        block: nn.Module,
        x: Tensor,
        mask: Tensor | None,
        pool_B: Tensor | None = None,
        packed: Packed | None = None,
    ) -> Tensor:
        return call_block(block, x, mask, pool_B, packed, recompute=self.grad_checkpointing)
