"""Pooling by attention of learned queries to the tokens of a tower (CoCa)."""

import torch
from torch import Tensor, nn

from clip_models.towers.layers import LayerNorm, attend
from clip_models.towers.products import Linear, linear


class QueryAttention(nn.Module):
    """Cross-attention with the parameters of nn.MultiheadAttention, for queries that are the same for all samples.

    Shapes: B batch, L tokens, Q queries, D width of the queries, K width of the tokens, H heads.
    """

    def __init__(self, width: int, context_width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        if context_width == width:
            self.in_proj_weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(3 * width, width)))
        else:
            self.q_proj_weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(width, width)))
            self.k_proj_weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(width, context_width)))
            self.v_proj_weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(width, context_width)))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = Linear(width, width)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, query_QD: Tensor, x_BLK: Tensor) -> Tensor:
        """→ [B, Q, D]."""
        B, D = x_BLK.shape[0], query_QD.shape[-1]
        if "in_proj_weight" in self._parameters:
            weights = self.in_proj_weight.chunk(3)
        else:
            weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        biases = self.in_proj_bias.chunk(3)
        # The queries are projected once for the whole batch.
        q = linear(query_QD, weights[0], biases[0]).expand(B, -1, -1)
        k, v = (linear(x_BLK, weight, bias) for weight, bias in zip(weights[1:], biases[1:], strict=True))
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (q, k, v))
        return self.out_proj(attend(q, k, v).transpose(1, 2).reshape(B, -1, D))


class AttentionalPooler(nn.Module):
    """[B, L, K] → [B, queries, D] by learned queries."""

    def __init__(self, width: int, context_width: int, heads: int, queries: int, norm_eps: float = 1e-5) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(queries, width))
        self.attn = QueryAttention(width, context_width, heads)
        self.ln_q = LayerNorm(width, norm_eps)
        self.ln_k = LayerNorm(context_width, norm_eps)

    def forward(self, x_BLK: Tensor) -> Tensor:
        # The queries take the dtype of the tokens, which in low precision is not that of their parameter.
        return self.attn(self.ln_q(self.query).to(x_BLK.dtype), self.ln_k(x_BLK))
