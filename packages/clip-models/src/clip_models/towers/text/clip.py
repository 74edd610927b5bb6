"""The text tower of CLIP.

Parameter names and shapes are OpenCLIP's. Shapes: B batch, L tokens, D width, E embed_dim.
"""

from typing import cast

import torch
from torch import Tensor, nn

from clip_models.errors import ClipModelsError
from clip_models.specs import CLIPTextConfig
from clip_models.towers.base import Found, Indices, TextTower, group_stack
from clip_models.towers.common import NoRandomInit, check_text, cut_captions, may_look, pooled_at
from clip_models.towers.layers import Block, LayerNorm, Packed, Transformer
from clip_models.towers.products import Linear

PACKED_SHARE = 0.9
"""Largest share of the tokens of a batch that is worth a copy in front of, and behind, each attention."""


class TextLayers(nn.Module):
    """The tensors of CLIP's text tower and their computation.

    They are in a tower of their own (`TextTransformer`) or at the root of a model, as in OpenAI's layout.
    """

    token_embedding: nn.Embedding
    positional_embedding: nn.Parameter
    cls_emb: nn.Parameter
    transformer: Transformer
    ln_final: LayerNorm
    text_projection: nn.Parameter | nn.Linear | None
    _text: CLIPTextConfig

    def add_text_layers(self, config: CLIPTextConfig, embed_dim: int, quick_gelu: bool) -> None:
        """Creates the tensors with OpenCLIP's initialisation."""
        config.check_width(embed_dim)
        width = config.width
        self._text = config
        self.context_length = config.context_length
        self.vocab_size = config.vocab_size
        self.positional_embedding = nn.Parameter(torch.empty(config.context_length + config.embed_cls, width))
        if config.embed_cls:
            self.cls_emb = nn.Parameter(0.01 * torch.randn(width))
        with NoRandomInit():  # drawn below, and only there
            self.token_embedding = nn.Embedding(config.vocab_size, width)
            self.transformer = Transformer(config, quick_gelu, causal=not config.no_causal_mask)
        self.ln_final = LayerNorm(width, config.norm_eps)
        if config.proj_type == "none":
            self.text_projection = None
        elif config.proj_bias:
            self.text_projection = Linear(width, embed_dim)
            nn.init.normal_(self.text_projection.weight, std=width**-0.5)
            nn.init.zeros_(self.text_projection.bias)
        else:
            self.text_projection = nn.Parameter(width**-0.5 * torch.randn(width, embed_dim))
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        init_text_blocks(self.transformer.resblocks, width, config.layers)

    def encode_ids(self, text: Tensor) -> tuple[Tensor, Tensor | None]:
        """int64 [B, L] → (features [B, E] or with pool_type none [B, L, E]; tokens [B, L, D] if output_tokens).

        If attention is causal, columns to the right of the pooled token change nothing and may be cut off. Raises
        ClipModelsError; ids outside the vocabulary are detected on the CPU only.
        """
        config = self._text
        self._check(text)
        text = cut_captions(text, config)
        pool_B = pooled_at(text, config)
        x, mask = self._embed_ids(text)
        if pool_B is not None and not config.output_tokens:
            return self._project(self.ln_final(self.transformer(x, mask, pool_B, self._packed(text, pool_B)))), None
        x = self.transformer(x, mask)
        features = self._project(self._pool_text(x, pool_B))
        if not config.output_tokens:
            return features, None
        # With a class token, a decoder gets the others without the norm.
        return features, x[:, :-1] if config.embed_cls else self.ln_final(x)

    def _check(self, text: Tensor) -> None:
        config = self._text
        L = config.context_length
        check_text(text, L, config.vocab_size)
        if text.shape[1] < L and not config.embed_cls and (config.no_causal_mask or config.pool_type == "last"):
            raise ClipModelsError(
                f"this text tower attends to padding: pad captions to {L} tokens, not {text.shape[1]}"
            )
        if config.pool_type == "eos" and not config.embed_cls and may_look(text):
            lacking = text.ne(cast(int, config.eos_id)).all(dim=1)
            if bool(lacking.any()):
                row = int(lacking.nonzero()[0])
                raise ClipModelsError(f"caption {row} of the batch lacks the end token {config.eos_id} that is pooled")

    def _embed_ids(self, text: Tensor) -> tuple[Tensor, Tensor | None]:
        """Returns (the input of the first block, the mask of a tower with a class token)."""
        dtype = self.transformer.dtype
        x = self.token_embedding(text).to(dtype)
        mask = None
        if self._text.embed_cls:
            x = torch.cat([x, self.cls_emb.to(dtype).expand(x.shape[0], 1, -1)], dim=1)
            mask = self._class_mask(text)
        return x + self.positional_embedding[: x.shape[1]].to(dtype), mask

    def _packed(self, text: Tensor, pool_B: Tensor) -> Packed | None:
        """Returns the tokens up to the pooled one of each caption if they alone decide the features, and are few.

        They are counted on the CPU only. Blocks that are compiled one by one get the whole batch: the number of tokens
        is another one in each batch.
        """
        compiled = vars(self.transformer.resblocks[0]).keys() & {"forward", "_compiled_call_impl"}
        if self._text.spare_columns != "after_pooled" or compiled or not may_look(text):
            return None
        B, L = text.shape
        place_N = (torch.arange(L) <= pool_B[:, None]).flatten().nonzero().squeeze(1)
        return Packed(place_N, B, L) if len(place_N) <= PACKED_SHARE * B * L else None

    def _class_mask(self, text: Tensor) -> Tensor:
        """Returns bool [B, 1, L + 1, L + 1]: the keys that each token, and last the class token, attends to.

        OpenCLIP's mask is one place off, and its weights were trained with it: it hides the tokens after a padding.
        """
        L = text.shape[1] + 1
        seen = torch.cat([text.new_ones(text.shape[0], 1, dtype=torch.bool), text != self._text.pad_id], dim=1)
        mask = seen[:, None, None, :].expand(-1, 1, L, L)
        return mask if self._text.no_causal_mask else mask.tril()

    def _pool_text(self, x_BLD: Tensor, pool_B: Tensor | None) -> Tensor:
        if pool_B is not None:
            x_BLD = x_BLD[torch.arange(x_BLD.shape[0], device=x_BLD.device), pool_B]
        return self.ln_final(x_BLD)

    def _project(self, pooled: Tensor) -> Tensor:
        if self.text_projection is None:
            return pooled
        if isinstance(self.text_projection, nn.Linear):
            return self.text_projection(pooled)
        return pooled @ self.text_projection


class TextTransformer(TextLayers, TextTower):
    """CLIP's text transformer as a module of its own: int64 [B, L] → [B, E], with output_tokens also the tokens."""

    def __init__(self, config: CLIPTextConfig, embed_dim: int, quick_gelu: bool = False) -> None:
        super().__init__()
        self.config = config
        self.add_text_layers(config, embed_dim, quick_gelu)

    def forward(self, text: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """See `encode_ids`."""
        features, tokens = self.encode_ids(text)
        return features if tokens is None else (features, tokens)

    def _intermediates(self, inputs: Tensor, indices: Indices, stop_early: bool, normalize: bool, layout: str) -> Found:
        """The extra tokens are the class tokens, `suffix` [B, 1, D]."""
        self._check(inputs)
        x, mask = self._embed_ids(inputs)
        x, outputs = self.transformer.intermediates(x, mask, indices, stop_early)
        if normalize:
            outputs = [self.ln_final(output) for output in outputs]
        extra = {}
        if self._text.embed_cls:
            extra["suffix"] = [output[:, -1:] for output in outputs]
            outputs = [output[:, :-1] for output in outputs]
        return outputs, extra, lambda: self._project(self._pool_text(x, pooled_at(inputs, self._text)))

    def blocks(self) -> list[nn.Module]:
        return list(self.transformer.resblocks)

    def layer_groups(self) -> list[list[str]]:
        """Embeddings; each block, the last with the norm; the projection."""
        blocks = [f"transformer.resblocks.{index}" for index in range(self._text.layers)]
        start = ("token_embedding", "positional_embedding", "cls_emb")
        return group_stack(self, start, blocks, ("ln_final",), ("text_projection",))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.transformer.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        return {"positional_embedding", "cls_emb"} if self._text.embed_cls else {"positional_embedding"}


def init_text_blocks(blocks: nn.ModuleList, width: int, layers: int) -> None:
    """Initialises the blocks of a text tower as OpenAI; MLP biases as PyTorch. Biases of attention stay zero."""
    residual_std = width**-0.5 * (2 * layers) ** -0.5
    for block in blocks:
        assert isinstance(block, Block)
        nn.init.normal_(block.attn.in_proj_weight, std=width**-0.5)
        nn.init.normal_(block.attn.out_proj.weight, std=residual_std)
        for layer, std in ((block.mlp.c_fc, (2 * width) ** -0.5), (block.mlp.c_proj, residual_std)):
            nn.init.normal_(layer.weight, std=std)
            bound = layer.in_features**-0.5
            nn.init.uniform_(layer.bias, -bound, bound)
