"""The modern text tower: rotary positions, gated linear units, RMSNorm, masked pooling, captions of any length.

Parameter names and shapes are those of OpenCLIP's `text_arch: "modern"`.

Shapes: B batch, L tokens, R registers, D width, H heads, C channels of a head.
"""

import functools
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip_models.specs import ModernTextConfig
from clip_models.towers.base import Found, Indices, TextTower, group_stack, take_indices
from clip_models.towers.common import call_block, check_text, cut_captions, valid_tokens
from clip_models.towers.layers import LayerNorm, LayerScale, attend
from clip_models.towers.products import Linear


class RMSNorm(nn.RMSNorm):
    """RMSNorm in the precision of its weights; the result has the dtype of the input."""

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.to(self.weight.dtype), self.normalized_shape, self.weight, self.eps).to(x.dtype)


def make_norm(config: ModernTextConfig, width: int) -> nn.Module:
    return (RMSNorm if config.norm_type == "rmsnorm" else LayerNorm)(width, eps=config.norm_eps)


def rotary_table(length: int, head_width: int, base: float, device: torch.device) -> Tensor:
    """Returns cosines and sines of the angle of each position and pair of channels: float32 [2, L, C / 2]."""
    frequencies = base ** (-torch.arange(0, head_width, 2, device=device, dtype=torch.float32) / head_width)
    angles = torch.outer(torch.arange(length, device=device, dtype=torch.float32), frequencies)
    return torch.stack([angles.cos(), angles.sin()])


def rotate(x_BHLC: Tensor, table: Tensor) -> Tensor:
    """Rotates pairs of neighbouring channels by the angles of `table`.

    The result has the even channels first. Queries and keys are permuted alike, which does not change their products.
    """
    cos, sin = table
    even, odd = x_BHLC[..., 0::2], x_BHLC[..., 1::2]
    return torch.cat([even * cos - odd * sin, odd * cos + even * sin], dim=-1)


class ModernAttention(nn.Module):
    """Self-attention with rotary positions; on request with normalised heads, a gate, the first block's values."""

    def __init__(self, config: ModernTextConfig, first: bool) -> None:
        super().__init__()
        width, bias = config.width, config.attention_bias
        self.heads = config.heads
        self.causal = config.attention_mode == "causal"
        self.qkv = Linear(width, 3 * width, bias=bias)
        self.q_norm = make_norm(config, config.head_width) if config.qk_norm else nn.Identity()
        self.k_norm = make_norm(config, config.head_width) if config.qk_norm else nn.Identity()
        gate_bias = bias if config.gate_bias is None else config.gate_bias
        self.gate = Linear(width, width, bias=gate_bias) if config.attn_gated else None
        # The first block has no values before it to mix with, and a parameter that nothing uses breaks DDP.
        self.value_residual = config.value_residual
        self.vr_lambda = nn.Parameter(torch.full((1,), 0.5)) if config.value_residual and not first else None
        self.proj = Linear(width, width, bias=bias)

    def forward(
        self, x_BLD: Tensor, table: Tensor | None, mask: Tensor | None, values_BHLC: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """→ (output [B, L, D], values of the first block [B, H, L, C] if later ones use them)."""
        B, L, D = x_BLD.shape
        qkv = self.qkv(x_BLD).view(B, L, 3, self.heads, D // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        if values_BHLC is not None and self.vr_lambda is not None:
            v = torch.lerp(values_BHLC, v, self.vr_lambda.to(v.dtype))
        elif self.value_residual:
            values_BHLC = v
        q, k = self.q_norm(q), self.k_norm(k)
        if table is not None:
            # The angles are float32, and so is the product; attention itself runs in the dtype of the values.
            q, k = rotate(q, table).to(v.dtype), rotate(k, table).to(v.dtype)
        y_BHLC = attend(q, k, v, mask, causal=self.causal)
        y_BLD = y_BHLC.transpose(1, 2).reshape(B, L, D)
        if self.gate is not None:
            y_BLD = y_BLD * self.gate(x_BLD).sigmoid()
        return self.proj(y_BLD), values_BHLC


class SwiGLU(nn.Module):
    """w3(a · silu(b)), where w12 gives a and b."""

    def __init__(self, width: int, hidden: int, bias: bool) -> None:
        super().__init__()
        self.w12 = Linear(width, 2 * hidden, bias=bias)
        self.w3 = Linear(hidden, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.w12(x).chunk(2, dim=-1)
        return self.w3(value * F.silu(gate))


class SquaredReLU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x).square()


def make_mlp(config: ModernTextConfig) -> nn.Module:
    width, hidden, bias = config.width, int(config.width * config.mlp_ratio), config.mlp_bias
    if config.mlp_type == "swiglu":
        return SwiGLU(width, hidden, bias)
    layers = [
        ("c_fc", Linear(width, hidden, bias=bias)),
        ("act", nn.GELU() if config.mlp_type == "mlp" else SquaredReLU()),
        ("c_proj", Linear(hidden, width, bias=bias)),
    ]
    return nn.Sequential(OrderedDict(layers))


class ModernBlock(nn.Module):
    """A residual block; with sandwich norms the outputs of the branches are normalised too."""

    def __init__(self, config: ModernTextConfig, first: bool) -> None:
        super().__init__()
        norm = functools.partial(make_norm, config, config.width)
        sandwich, scale = config.norm_placement == "sandwich", config.ls_init_value
        self.norm1 = norm()
        self.attn = ModernAttention(config, first)
        self.norm1_post = norm() if sandwich else nn.Identity()
        self.ls1 = nn.Identity() if scale is None else LayerScale(config.width, scale)
        self.norm2 = norm()
        self.mlp = make_mlp(config)
        self.norm2_post = norm() if sandwich else nn.Identity()
        self.ls2 = nn.Identity() if scale is None else LayerScale(config.width, scale)

    def forward(
        self, x_BLD: Tensor, table: Tensor | None, mask: Tensor | None, values_BHLC: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        y_BLD, values_BHLC = self.attn(self.norm1(x_BLD), table, mask, values_BHLC)
        x_BLD = x_BLD + self.ls1(self.norm1_post(y_BLD))
        return x_BLD + self.ls2(self.norm2_post(self.mlp(self.norm2(x_BLD)))), values_BHLC


class ModernPool(nn.Module):
    """One vector per caption: its end token, the mean of its tokens, or attention of a learned query to them."""

    def __init__(self, config: ModernTextConfig) -> None:
        super().__init__()
        self.kind = config.pool_type
        self.eos_id = -1 if config.eos_id is None else config.eos_id
        self.heads = config.heads
        if self.kind != "map":
            return
        width, bias = config.width, config.attention_bias
        self.query = nn.Parameter(torch.empty(1, 1, width))
        self.q = Linear(width, width, bias=bias)
        self.kv = Linear(width, 2 * width, bias=bias)
        self.q_norm = make_norm(config, config.head_width) if config.qk_norm else nn.Identity()
        self.k_norm = make_norm(config, config.head_width) if config.qk_norm else nn.Identity()

    def forward(self, x_BLD: Tensor, text_BL: Tensor, valid_BL: Tensor) -> Tensor:
        """[B, L, D] and the tokens' ids and validity → [B, D]."""
        B, L, D = x_BLD.shape
        if self.kind == "mean":
            weight_BL1 = valid_BL.to(x_BLD.dtype).unsqueeze(-1)
            return (x_BLD * weight_BL1).sum(dim=1) / weight_BL1.sum(dim=1)
        if self.kind == "eos":
            ends_BL = text_BL.eq(self.eos_id)
            last_B = valid_BL.sum(dim=1) - 1
            index_B = torch.where(ends_BL.any(dim=1), ends_BL.to(torch.uint8).argmax(dim=1), last_B)
            return x_BLD[torch.arange(B, device=x_BLD.device), index_B]
        q = self.q(self.query.to(x_BLD.dtype)).view(1, 1, self.heads, -1).transpose(1, 2)
        k, v = self.kv(x_BLD).view(B, L, 2, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        q, k = self.q_norm(q).expand(B, -1, -1, -1), self.k_norm(k)
        pooled = attend(q, k, v, valid_BL[:, None, None, :])
        return pooled.transpose(1, 2).reshape(B, D)


class Blocks(nn.ModuleList):
    """The blocks under OpenCLIP's name `blocks`; called, their list, as the method `blocks()` of other towers."""

    def forward(self) -> list[nn.Module]:
        return list(self)


class ModernTextTransformer(TextTower):
    """Columns of padding may be cut off or added: they change no feature. With `output_tokens` the result is
    (features, tokens [B, L, D]); tokens at the padding are meaningless.
    """

    def __init__(self, config: ModernTextConfig, embed_dim: int, quick_gelu: bool = False) -> None:
        super().__init__()
        config.check_width(embed_dim)
        self.config = config
        self.context_length = config.context_length
        self.vocab_size = config.vocab_size
        self.output_tokens = config.output_tokens
        width, registers = config.width, config.reg_tokens
        self.token_embedding = nn.Embedding(config.vocab_size, width, padding_idx=config.pad_id)
        self.reg_tokens = nn.Parameter(torch.empty(1, registers, width)) if registers else None
        self.norm_pre = make_norm(config, width) if config.pre_norm else nn.Identity()
        self._modules["blocks"] = Blocks(ModernBlock(config, first=number == 0) for number in range(config.layers))
        self.ln_final = make_norm(config, width)
        self.pool = ModernPool(config)
        projects = config.proj_type == "linear"
        self.text_projection = Linear(width, embed_dim, bias=config.proj_bias) if projects else nn.Identity()
        self.init_parameters()

    @torch.no_grad()
    def init_parameters(self) -> None:
        """OpenCLIP's initialisation: the scale of CLIP's text tower, or 0.02 everywhere with sandwich norms."""
        config, width = self.config, self.config.width
        sandwich = config.norm_placement == "sandwich"
        input_std = 0.02 if sandwich else width**-0.5
        hidden_std = 0.02 if sandwich else (2 * width) ** -0.5
        residual_std = 0.02 if sandwich else width**-0.5 * (2 * config.layers) ** -0.5
        if config.mlp_type == "swiglu" and not sandwich:
            hidden_std *= 1.22  # the product of value and gate has less variance than a GELU's output
        residual_std = 0.0 if config.zero_init_residual else residual_std
        stds = {
            ("attn.proj.weight", "w3.weight", "c_proj.weight"): residual_std,
            ("qkv.weight", "gate.weight"): input_std,
            ("w12.weight", "c_fc.weight"): hidden_std,
        }
        for name, parameter in self.blocks.named_parameters():
            if name.endswith(".bias"):  # sigmoid(1) = 0.73: gates start mostly open
                nn.init.constant_(parameter, 1.0 if name.endswith("gate.bias") else 0.0)
            for ends, std in stds.items():
                if name.endswith(ends):
                    nn.init.normal_(parameter, std=std)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        self.token_embedding.weight[config.pad_id].zero_()
        if self.reg_tokens is not None:
            nn.init.normal_(self.reg_tokens, std=1e-6)
        readout = [*self.pool.named_parameters(), *self.text_projection.named_parameters()]
        for name, parameter in readout:
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif "norm" not in name:
                nn.init.normal_(parameter, std=width**-0.5)

    def _run(
        self, text_BL: Tensor, taken: Sequence[int] = (), stop: int | None = None
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """→ (output of the last block, registers in front; validity of the tokens [B, L]; outputs of `taken`)."""
        config = self.config
        x_BLD = self.token_embedding(text_BL).to(self.get_parameter("blocks.0.attn.qkv.weight").dtype)
        if self.reg_tokens is not None:
            x_BLD = torch.cat([self.reg_tokens.to(x_BLD.dtype).expand(x_BLD.shape[0], -1, -1), x_BLD], dim=1)
        x_BLD = self.norm_pre(x_BLD)
        valid_BL = valid_tokens(text_BL, config.pad_id)
        mask = None
        if config.attention_mode == "bidirectional":  # in causal attention no token attends to the padding
            mask = F.pad(valid_BL, (config.reg_tokens, 0), value=True)[:, None, None, :]
        table = None
        if config.pos_embed == "rope":
            table = rotary_table(x_BLD.shape[1], config.head_width, config.rope_temperature, x_BLD.device)
        outputs, values = [], None
        for number, block in enumerate(self.blocks):
            if stop is not None and number > stop:
                break
            x_BLD, values = call_block(block, x_BLD, table, mask, values, recompute=self.grad_checkpointing)
            if number in taken:
                outputs.append(x_BLD)
        return x_BLD, valid_BL, outputs

    def _finish(self, x_BLD: Tensor, text_BL: Tensor, valid_BL: Tensor) -> tuple[Tensor, Tensor]:
        """→ (features [B, embed_dim], tokens [B, L, D] without the registers)."""
        tokens_BLD = self.ln_final(x_BLD)[:, self.config.reg_tokens :]
        return self.text_projection(self.pool(tokens_BLD, text_BL, valid_BL)), tokens_BLD

    def forward(self, text: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        check_text(text, self.context_length, self.vocab_size)
        if not self.output_tokens:
            text = cut_captions(text, self.config)
        x_BLD, valid_BL, _ = self._run(text)
        features, tokens_BLD = self._finish(x_BLD, text, valid_BL)
        return (features, tokens_BLD) if self.output_tokens else features

    def _intermediates(self, inputs: Tensor, indices: Indices, stop_early: bool, normalize: bool, layout: str) -> Found:
        """The extra tokens are the registers, `extra`."""
        check_text(inputs, self.context_length, self.vocab_size)
        taken = take_indices(len(self.blocks), indices)
        x_BLD, valid_BL, outputs = self._run(inputs, taken, max(taken) if stop_early else None)
        if normalize:
            outputs = [self.ln_final(output) for output in outputs]
        registers = self.config.reg_tokens
        extra = {"extra": [output[:, :registers] for output in outputs]}
        return [output[:, registers:] for output in outputs], extra, lambda: self._finish(x_BLD, inputs, valid_BL)[0]

    @property
    def blocks(self) -> Any:  # a module of this name, which is called as the method of other towers
        return self._modules["blocks"]

    def layer_groups(self) -> list[list[str]]:
        """Embeddings; each block, the last with the final norm; pooling and projection."""
        blocks = [f"blocks.{number}" for number in range(len(self.blocks))]
        start, head = ("token_embedding", "reg_tokens", "norm_pre"), ("pool", "text_projection")
        return group_stack(self, start, blocks, ("ln_final",), head)

    def no_weight_decay(self) -> set[str]:
        """Learned tokens, which weight decay would pull to zero."""
        return {name for name, _ in self.named_parameters() if name in ("reg_tokens", "pool.query")}
