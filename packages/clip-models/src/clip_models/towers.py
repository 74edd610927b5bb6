"""The image tower and the blocks that both towers are made of.

Parameter names and shapes are OpenCLIP's. Nothing here knows of ranks, compilation or checkpointing: they are
applied to the blocks from outside.

Shapes: B batch, L tokens, D width, H heads, P patches, S side of the picture.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip_models.errors import ClipModelsError
from clip_models.specs import VisionConfig


class LayerNorm(nn.LayerNorm):
    """LayerNorm in the precision of its weights whatever comes in; the result has the dtype of the input."""

    def forward(self, x: Tensor) -> Tensor:
        y = F.layer_norm(x.to(self.weight.dtype), self.normalized_shape, self.weight, self.bias, self.eps)
        return y.to(x.dtype)


class QuickGELU(nn.Module):
    """x·sigmoid(1.702x), the activation that OpenAI's weights were trained with."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class Attention(nn.Module):
    """Self-attention with the parameters of nn.MultiheadAttention and its initialisation."""

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads = heads
        self.causal = causal
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def mix(self, x_BLD: Tensor) -> Tensor:
        """The heads' outputs side by side, before the output projection: [B, L, D]."""
        B, L, D = x_BLD.shape
        qkv = F.linear(x_BLD, self.in_proj_weight, self.in_proj_bias).view(B, L, 3, self.heads, D // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        y_BHLC = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return y_BHLC.transpose(1, 2).reshape(B, L, D)

    def forward(self, x_BLD: Tensor) -> Tensor:
        return self.out_proj(self.mix(x_BLD))


class MLP(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, width: int, hidden: int, quick_gelu: bool) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, hidden)
        self.act = QuickGELU() if quick_gelu else nn.GELU()
        self.c_proj = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(self.act(self.c_fc(x)))


class Block(nn.Module):
    """A pre-norm residual block."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, quick_gelu: bool, causal: bool) -> None:
        super().__init__()
        self.ln_1 = LayerNorm(width)
        self.attn = Attention(width, heads, causal)
        self.ln_2 = LayerNorm(width)
        self.mlp = MLP(width, int(width * mlp_ratio), quick_gelu)

    def forward(self, x_BLD: Tensor, pool_B: Tensor | None = None) -> Tensor:
        """[B, L, D] → [B, L, D], or → [B, D] with `pool_B`, the token of each sample that is needed afterwards.

        Past the attention each token goes its own way, so that the last block of a tower can leave out three
        quarters of its work and still give the pooled token exactly what it would get.
        """
        if pool_B is None:
            x = x_BLD + self.attn(self.ln_1(x_BLD))
        else:
            rows = torch.arange(x_BLD.shape[0], device=x_BLD.device)
            x = x_BLD[rows, pool_B] + self.attn.out_proj(self.attn.mix(self.ln_1(x_BLD))[rows, pool_B])
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    """A stack of blocks; `resblocks` is what compilation, sharding and activation checkpointing are applied to."""

    def __init__(
        self, width: int, layers: int, heads: int, mlp_ratio: float, quick_gelu: bool, causal: bool = False
    ) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(Block(width, heads, mlp_ratio, quick_gelu, causal) for _ in range(layers))

    def forward(self, x_BLD: Tensor, pool_B: Tensor | None = None) -> Tensor:
        """[B, L, D] → [B, L, D], or → [B, D] at the tokens `pool_B` (int64 [B])."""
        *blocks, last = self.resblocks
        for block in blocks:
            x_BLD = block(x_BLD)
        return last(x_BLD, pool_B)


class VisionTransformer(nn.Module):
    """The ViT of CLIP: float [B, 3, S, S], already normalised, → [B, embed_dim].

    Initialisation is OpenCLIP's: PyTorch's defaults for convolution, linear and attention layers, width^-0.5 normal
    for the embeddings and the projection.
    """

    def __init__(self, config: VisionConfig, embed_dim: int, quick_gelu: bool) -> None:
        super().__init__()
        width = config.width
        scale = width**-0.5
        self.image_size = config.image_size
        self.patch_size = config.patch_size
        self.grid = config.image_size // config.patch_size
        self.conv1 = nn.Conv2d(3, width, kernel_size=config.patch_size, stride=config.patch_size, bias=False)
        self.class_embedding = nn.Parameter(scale * torch.randn(width))
        self.positional_embedding = nn.Parameter(scale * torch.randn(self.grid**2 + 1, width))
        self.ln_pre = LayerNorm(width)
        self.transformer = Transformer(width, config.layers, config.heads, config.mlp_ratio, quick_gelu)
        self.ln_post = LayerNorm(width)
        self.proj = nn.Parameter(scale * torch.randn(width, embed_dim))

    def embed_patches(self, image: Tensor) -> Tensor:
        """[B, 3, S, S] → [B, P, D].

        A convolution whose stride is its kernel is a linear map of each patch. As a matrix product it takes 0.6 to
        0.95 of the time of the convolution, forward and backward on a CPU core.
        """
        B, G, p = image.shape[0], self.grid, self.patch_size
        patches = image.reshape(B, 3, G, p, G, p).permute(0, 2, 4, 1, 3, 5).reshape(B, G * G, 3 * p * p)
        return F.linear(patches, self.conv1.weight.flatten(1))

    def forward(self, image: Tensor) -> Tensor:
        if image.ndim != 4 or image.shape[1:] != (3, self.image_size, self.image_size):
            raise ClipModelsError(
                f"the image tower takes [batch, 3, {self.image_size}, {self.image_size}], not {list(image.shape)}"
            )
        if not image.is_floating_point():
            raise ClipModelsError(f"the image tower takes normalised floats, not {image.dtype}; apply mean and std")
        x = self.embed_patches(image.to(self.conv1.weight.dtype))
        token = self.class_embedding.to(x.dtype).expand(x.shape[0], 1, -1)
        x = self.ln_pre(torch.cat([token, x], dim=1) + self.positional_embedding.to(x.dtype))
        x_BD = self.transformer(x, torch.zeros(x.shape[0], dtype=torch.int64, device=x.device))
        return self.ln_post(x_BD) @ self.proj
