"""The dual encoder.

Shapes: B batch, L tokens, D text width, E embed_dim, S side of the picture.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip_models.errors import ClipModelsError
from clip_models.specs import ModelSpec, TextConfig
from clip_models.towers import Block, LayerNorm, Transformer, VisionTransformer


class CLIP(nn.Module):
    """CLIP as OpenCLIP lays it out: the image tower under `visual`, the modules of the text tower at the root.

    The output features are not normalised unless asked for, except those of `forward`, which trains.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.visual = VisionTransformer(spec.vision, spec.embed_dim, spec.quick_gelu)
        text = spec.text
        self.context_length = text.context_length
        self.vocab_size = text.vocab_size
        self.token_embedding = nn.Embedding(text.vocab_size, text.width)
        self.positional_embedding = nn.Parameter(torch.empty(text.context_length, text.width))
        self.transformer = Transformer(
            text.width, text.layers, text.heads, text.mlp_ratio, spec.quick_gelu, causal=True
        )
        self.ln_final = LayerNorm(text.width)
        self.text_projection = nn.Parameter(torch.empty(text.width, spec.embed_dim))
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self._init_text(text)

    def _init_text(self, text: TextConfig) -> None:
        """OpenAI's initialisation of the text tower, as OpenCLIP has it; biases keep PyTorch's defaults."""
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        residual_std = text.width**-0.5 * (2 * text.layers) ** -0.5
        for block in self.transformer.resblocks:
            assert isinstance(block, Block)
            nn.init.normal_(block.attn.in_proj_weight, std=text.width**-0.5)
            nn.init.normal_(block.attn.out_proj.weight, std=residual_std)
            nn.init.normal_(block.mlp.c_fc.weight, std=(2 * text.width) ** -0.5)
            nn.init.normal_(block.mlp.c_proj.weight, std=residual_std)
        nn.init.normal_(self.text_projection, std=text.width**-0.5)

    def encode_image(self, image: Tensor, normalize: bool = False) -> Tensor:
        """float [B, 3, S, S], mean and std applied → [B, E]; L2-normalised on request."""
        features = self.visual(image)
        return F.normalize(features, dim=-1) if normalize else features

    def encode_text(self, text: Tensor, normalize: bool = False) -> Tensor:
        """int64 [B, L], L ≤ context_length, with the end token as the highest id of each row → [B, E].

        Columns to the right of every end token may be cut off: attention is causal, so they change nothing.
        """
        if text.ndim != 2 or not 0 < text.shape[1] <= self.context_length:
            raise ClipModelsError(
                f"the text tower takes [batch, up to {self.context_length}] token ids, not {list(text.shape)}"
            )
        if text.dtype not in (torch.int64, torch.int32):
            raise ClipModelsError(f"the text tower takes token ids in int64, not {text.dtype}")
        dtype = self.text_projection.dtype
        x = self.token_embedding(text).to(dtype) + self.positional_embedding[: text.shape[1]].to(dtype)
        x_BD = self.transformer(x, text.argmax(dim=-1))
        features = self.ln_final(x_BD) @ self.text_projection
        return F.normalize(features, dim=-1) if normalize else features

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """→ (image features [B, E], text features [B, E], both L2-normalised, and exp(logit_scale), a scalar)."""
        return self.encode_image(image, normalize=True), self.encode_text(text, normalize=True), self.logit_scale.exp()
