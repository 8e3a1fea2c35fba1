"""The token encoder that is trained together with a diffusion model (arXiv 2112.10752, section 3.3 and table 17).

Names and shapes are those of the published models, which took it from x-transformers: absolute positions, pre-norm
blocks of attention and feed-forward, a last norm.
"""

import torch
from torch import Tensor, nn

from ldm.networks.layers import attention, join_heads, split_heads

NUM_HEADS, HEAD_WIDTH = 8, 64  # whatever the width: 512 channels of attention in every published model


class Attention(nn.Module):
    """Self-attention of x [B, N, width] with 8 heads of 64."""

    def __init__(self, width: int):
        super().__init__()
        inner = NUM_HEADS * HEAD_WIDTH
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_k = nn.Linear(width, inner, bias=False)
        self.to_v = nn.Linear(width, inner, bias=False)
        self.to_out = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (split_heads(part(x), NUM_HEADS) for part in (self.to_q, self.to_k, self.to_v))
        return self.to_out(join_heads(attention(q, k, v)))


class FeedForward(nn.Module):
    """Two layers with GELU between them, four times as wide inside: [B, N, width] -> [B, N, width]."""

    def __init__(self, width: int):
        super().__init__()
        # The identity stands where the published networks had a dropout of 0: it keeps their numbering.
        self.net = nn.Sequential(
            nn.Sequential(nn.Linear(width, 4 * width), nn.GELU()), nn.Identity(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Layers(nn.Module):
    """`depth` pairs of attention and feed-forward on x [B, N, width], each with a norm before it and a skip."""

    def __init__(self, width: int, depth: int):
        super().__init__()
        blocks = [block for _ in range(depth) for block in (Attention(width), FeedForward(width))]
        self.layers = nn.ModuleList([nn.ModuleList([nn.LayerNorm(width), block]) for block in blocks])

    def forward(self, x: Tensor) -> Tensor:
        for norm, block in self.layers:  # type: ignore[attr-defined]  # ModuleLists of two
            x = x + block(norm(x))
        return x


class Positions(nn.Module):
    """A learned embedding of each place."""

    def __init__(self, max_tokens: int, width: int):
        super().__init__()
        self.emb = nn.Embedding(max_tokens, width)


class TextTransformer(nn.Module):
    """Token numbers [B, N] in [0, vocabulary), N <= max_tokens -> [B, N, width]. All tokens see all, padding too.

    `to_logits` does nothing: published files hold it, and it goes in and out with them, frozen.
    """

    def __init__(self, vocabulary: int, max_tokens: int, width: int, depth: int):
        super().__init__()
        self.token_emb = nn.Embedding(vocabulary, width)
        self.pos_emb = Positions(max_tokens, width)
        self.attn_layers = Layers(width, depth)
        self.norm = nn.LayerNorm(width)
        self.to_logits = nn.Linear(width, vocabulary).requires_grad_(False)
        for embedding in (self.token_emb, self.pos_emb.emb):
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(self, ids: Tensor) -> Tensor:
        places = torch.arange(ids.shape[1], device=ids.device)
        return self.norm(self.attn_layers(self.token_emb(ids) + self.pos_emb.emb(places)))
