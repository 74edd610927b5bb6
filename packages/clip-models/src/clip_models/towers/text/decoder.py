"""CoCa's multimodal decoder: a causal transformer over the caption that attends to the image after every block.

Parameter names and shapes are OpenCLIP's.

Shapes: B images, N captions (a whole number for each image), L tokens of a caption, M tokens of an image, D width,
H heads, C channels of a head, V vocabulary.
"""

import torch
from torch import Tensor, nn

from clip_models.errors import ClipModelsError
from clip_models.specs import DecoderConfig
from clip_models.towers.base import Tower, names_under
from clip_models.towers.common import NoRandomInit, call_block
from clip_models.towers.layers import Attention, Block, LayerNorm, attend
from clip_models.towers.products import linear
from clip_models.towers.text.clip import init_text_blocks


class CrossAttention(Attention):
    """Attention to the tokens of an image, whose keys and values can be computed once for many queries."""

    def keys_values(self, image_BMD: Tensor) -> Tensor:
        """→ [2, B, H, M, C]."""
        B, M, D = image_BMD.shape
        kv = linear(image_BMD, self.in_proj_weight[D:], self.in_proj_bias[D:])
        return kv.view(B, M, 2, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)

    def look(self, x_NLD: Tensor, keys_values: Tensor) -> Tensor:
        """[N, L, D] → [N, L, D]. The captions of an image are adjacent and share its keys and values."""
        N, L, D = x_NLD.shape
        k, v = keys_values.unbind(0)
        q = linear(x_NLD, self.in_proj_weight[:D], self.in_proj_bias[:D])
        # No query sees another one, so that the captions of an image are one long sequence here.
        q_BHQC = q.view(k.shape[0], -1, self.heads, D // self.heads).transpose(1, 2)
        return self.out_proj(attend(q_BHQC, k, v).transpose(1, 2).reshape(N, L, D))


class CrossBlock(Block):
    """A pre-norm residual block whose attention goes to the tokens of an image."""

    def __init__(self, config: DecoderConfig, quick_gelu: bool) -> None:
        super().__init__(config, quick_gelu)
        self.attn: CrossAttention = CrossAttention(config.width, config.heads)
        self.ln_1_kv = LayerNorm(config.width)

    def keys_values(self, image_BMD: Tensor) -> Tensor:
        """Returns the input of `look` from the images: [2, B, H, M, C]."""
        return self.attn.keys_values(self.ln_1_kv(image_BMD))

    def look(self, x_NLD: Tensor, keys_values: Tensor) -> Tensor:
        x = x_NLD + self.attn.look(self.ln_1(x_NLD), keys_values)
        return x + self.mlp(self.ln_2(x))

    def forward(self, x_NLD: Tensor, image_BMD: Tensor) -> Tensor:  # type: ignore[override]
        return self.look(x_NLD, self.keys_values(image_BMD))


class MultimodalDecoder(Tower):
    """(image tokens [B, M, D], text tokens [B, L, D]) → logits of the next token [B, L, V].

    Initialised as CLIP's text transformer; OpenCLIP leaves the projection unset.
    """

    def __init__(self, config: DecoderConfig, quick_gelu: bool) -> None:
        super().__init__()
        width = config.width
        self.context_length = config.context_length
        with NoRandomInit():  # drawn below, and only there
            self.resblocks = nn.ModuleList(Block(config, quick_gelu, causal=True) for _ in range(config.layers))
            self.cross_attn = nn.ModuleList(CrossBlock(config, quick_gelu) for _ in range(config.layers))
        self.ln_final = LayerNorm(width)
        self.text_projection = nn.Parameter(torch.empty(width, config.vocab_size))
        init_text_blocks(self.resblocks, width, config.layers)
        init_text_blocks(self.cross_attn, width, config.layers)
        nn.init.normal_(self.text_projection, std=width**-0.5)

    def forward(self, image_BMD: Tensor, text_BLD: Tensor) -> Tensor:
        if text_BLD.shape[1] > self.context_length:
            raise ClipModelsError(f"the decoder takes up to {self.context_length} tokens, not {text_BLD.shape[1]}")
        x = text_BLD
        for block, cross in self.pairs():
            x = call_block(block, x, recompute=self.grad_checkpointing)
            x = call_block(cross, x, image_BMD, recompute=self.grad_checkpointing)
        return self.project(x)

    def project(self, x: Tensor) -> Tensor:
        """Returns logits [..., V] of the residual stream [..., D]."""
        x = self.ln_final(x)
        return x @ self.text_projection.to(x.dtype)

    def pairs(self) -> list[tuple[Block, CrossBlock]]:
        """Returns the blocks in their order."""
        return list(zip(self.resblocks, self.cross_attn, strict=True))  # type: ignore[arg-type]

    def blocks(self) -> list[nn.Module]:
        return [block for pair in self.pairs() for block in pair]

    def layer_groups(self) -> list[list[str]]:
        """Returns the names of the parameters of each pair of blocks, and of the output."""
        pairs = [names_under(self, f"resblocks.{i}", f"cross_attn.{i}") for i in range(len(self.resblocks))]
        return [*pairs, names_under(self, "ln_final", "text_projection")]
