"""The image tower of CLIP.

Parameter names and shapes are OpenCLIP's. Shapes: B batch, L tokens, D width, P patches, E embed_dim.
"""

import torch
from torch import Tensor, nn

from clip_models.errors import ClipModelsError
from clip_models.specs import ViTConfig, as_pair
from clip_models.towers.base import Found, ImageTower, Indices, group_stack
from clip_models.towers.common import check_image
from clip_models.towers.image.pooling import AttentionalPooler
from clip_models.towers.layers import LayerNorm, Transformer
from clip_models.towers.positions import sin_cos_2d
from clip_models.towers.products import linear


class PatchDropout(nn.Module):
    """Chooses the patches that a training step keeps, other ones for each sample (FLIP, Li et al. 2023)."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, patches: Tensor) -> Tensor:
        """[B, P, …] → int64 [B, kept], positions among the P."""
        B, P = patches.shape[:2]
        count = max(1, int(P * (1 - self.share)))
        return torch.randn(B, P, device=patches.device).topk(count).indices


class VisionTransformer(ImageTower):
    """Initialised as in OpenCLIP: PyTorch's defaults for convolution, linear and attention layers, width^-0.5 normal
    for the embeddings and the projection.
    """

    layouts = ("NCHW", "NLC")

    def __init__(self, config: ViTConfig, embed_dim: int, quick_gelu: bool = False) -> None:
        super().__init__()
        width = config.width
        scale = width**-0.5
        self.config = config
        self.image_size = as_pair(config.image_size)
        self.grid_size = config.grid
        self.output_tokens = config.output_tokens
        self.conv1 = nn.Conv2d(3, width, kernel_size=config.patch_size, stride=config.patch_size, bias=False)
        self.class_embedding = nn.Parameter(scale * torch.randn(width))
        if config.pos_embed_type == "sin_cos_2d":
            self.positional_embedding = nn.Parameter(sin_cos_2d(width, self.grid_size), requires_grad=False)
        else:
            patches = self.grid_size[0] * self.grid_size[1]
            self.positional_embedding = nn.Parameter(scale * torch.randn(patches + 1, width))
        self.patch_dropout = PatchDropout(config.patch_dropout)
        self.ln_pre = nn.Identity() if config.no_ln_pre else LayerNorm(width, config.norm_eps)
        self.transformer = Transformer(config, quick_gelu)
        pooled_width = width
        self.attn_pool: AttentionalPooler | None = None
        if config.attentional_pool:
            pooled_width = embed_dim
            self.attn_pool = AttentionalPooler(
                embed_dim, width, config.attn_pooler_heads, config.attn_pooler_queries, config.norm_eps
            )
        self.ln_post = LayerNorm(pooled_width, config.norm_eps)
        self.proj = nn.Parameter(scale * torch.randn(pooled_width, embed_dim))

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """→ [B, E] ([B, L, E] with pool_type none), with the config's output_tokens also the tokens [B, L, D]."""
        x = self._embed(image)
        if self.config.pool_type == "tok" and self.attn_pool is None and not self.output_tokens:
            x_BD = self.transformer(x, pool_B=torch.zeros(x.shape[0], dtype=torch.int64, device=x.device))
            return self.ln_post(x_BD) @ self.proj
        pooled, tokens = self._pool(self.transformer(x))
        return (pooled @ self.proj, tokens) if self.output_tokens else pooled @ self.proj

    def _intermediates(self, inputs: Tensor, indices: Indices, stop_early: bool, normalize: bool, layout: str) -> Found:
        """The extra tokens are the class tokens, `prefix` [B, 1, D]."""
        if normalize and self.attn_pool is not None:
            raise ClipModelsError("ln_post comes after the attentional pooling: it cannot normalize intermediates")
        x, outputs = self.transformer.intermediates(self._embed(inputs, drop=False), None, indices, stop_early)
        if normalize:
            outputs = [self.ln_post(output) for output in outputs]
        patches = [output[:, 1:] for output in outputs]
        if layout == "NCHW":
            patches = [patch.transpose(1, 2).unflatten(-1, self.grid_size).contiguous() for patch in patches]
        return patches, {"prefix": [output[:, :1] for output in outputs]}, lambda: self._pool(x)[0] @ self.proj

    def embed_patches(self, image: Tensor) -> Tensor:
        """Returns the pixels of each patch, [B, P, 3·patch²] in the layout of the kernel, of [B, 3, height, width]."""
        (rows, columns), p = self.grid_size, self.config.patch_size
        patches = image[:, :, : rows * p, : columns * p].reshape(-1, 3, rows, p, columns, p)
        return patches.permute(0, 2, 4, 1, 3, 5).reshape(-1, rows * columns, 3 * p * p)

    def _embed(self, image: Tensor, drop: bool = True) -> Tensor:
        """Returns the input of the first block, [B, 1 + P, D]; in training without the dropped patches.

        A convolution whose stride is its kernel is a linear map of each patch. As a matrix product it takes 0.6 to
        0.95 of the time of the convolution, forward and backward on a CPU core, and dropped patches cost nothing.
        """
        check_image(image, self.image_size)
        patches = self.embed_patches(image.to(self.conv1.weight.dtype))
        position = self.positional_embedding[1:]
        if drop and self.training and self.config.patch_dropout:
            kept = self.patch_dropout(patches)
            patches = patches[torch.arange(len(patches), device=patches.device)[:, None], kept]
            position = position[kept]
        x = linear(patches, self.conv1.weight.flatten(1))
        token = (self.class_embedding.to(x.dtype) + self.positional_embedding[0].to(x.dtype)).expand(x.shape[0], 1, -1)
        return self.ln_pre(torch.cat([token, x + position.to(x.dtype)], dim=1))

    def _pool(self, x_BLD: Tensor) -> tuple[Tensor, Tensor]:
        """Returns (pooled, tokens) of the last block's output, before the projection."""
        if self.attn_pool is not None:
            x_BLD = self.attn_pool(x_BLD)
        late = self.config.final_ln_after_pool and self.attn_pool is None
        x = x_BLD if late else self.ln_post(x_BLD)
        if self.config.pool_type == "none":
            pooled = tokens = x
        else:
            tokens = x[:, 1:]
            pooled = x[:, 0] if self.config.pool_type == "tok" else tokens.mean(dim=1)
        return (self.ln_post(pooled) if late else pooled), tokens

    def layer_groups(self) -> list[list[str]]:
        """Embeddings; each block, the last with the norm; the projection."""
        blocks = [f"transformer.resblocks.{index}" for index in range(self.config.layers)]
        start = ("conv1", "class_embedding", "positional_embedding", "ln_pre")
        return group_stack(self, start, blocks, ("attn_pool", "ln_post"), ("proj",))

    def blocks(self) -> list[nn.Module]:
        return list(self.transformer.resblocks)

    def lock(self, unlocked_groups: int = 0, freeze_bn_stats: bool = False) -> None:
        super().lock(unlocked_groups, freeze_bn_stats)
        if self.config.pos_embed_type == "sin_cos_2d":
            self.positional_embedding.requires_grad_(False)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.transformer.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        return {"positional_embedding", "class_embedding"}
