"""Attention blocks of U-Nets: ADM's self-attention, cross-attention alone, and the transformer with both.

Module names and shapes are those of the published latent diffusion models (arXiv 2112.10752), so that their
weights fit. In the transformer the order is self-attention, cross-attention, feed-forward.
"""

from functools import partial
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from ldm.networks.context import Context
from ldm.networks.layers import attention, join_heads, pointwise, split_heads, to_grid, to_tokens, zeroed
from ldm.networks.norm_silu import group_norm


class Cond(NamedTuple):
    """The conditions passed to every layer of a U-Net; each uses what it needs.

    emb [B, E]: noise level and vectors; context: the tokens, or None.
    """

    emb: Tensor
    context: Context | None


class AttentionBlock(nn.Module):
    """x + proj_out(attention(qkv(norm(x)))) over all positions of x [B, C, H, W], as in ADM.

    `legacy_order`: the rows of qkv are (head, q|k|v, d) as in the published LDMs, else (q|k|v, head, d).
    """

    def __init__(self, channels: int, num_heads: int, legacy_order: bool = True, norm_groups: int = 32):
        super().__init__()
        self.num_heads = num_heads
        self.legacy_order = legacy_order
        self.norm = nn.GroupNorm(norm_groups, channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = zeroed(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor, cond: Cond) -> Tensor:
        qkv = pointwise(to_tokens(group_norm(self.norm, x)), self.qkv)  # [B, N, 3C]
        if self.legacy_order:
            qkv = qkv.unflatten(-1, (self.num_heads, 3, -1)).permute(3, 0, 2, 1, 4)
        else:
            qkv = qkv.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        out = join_heads(attention(*qkv.unbind(0)))  # [B, N, C]
        return x + to_grid(pointwise(out, self.proj_out), x)


class SelfAttention(nn.Module):
    """Multi-head attention among the tokens of x [B, N, width]; mask [B, N] (True = real), None: all are."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # each [B, heads, N, d]
        return self.proj(join_heads(attention(q, k, v, None if mask is None else mask[:, None, None])))


class Attention(nn.Module):
    """Multi-head attention of x [B, N, width] on the tokens [B, M, context_width] of a context.

    A bias of the context has to be for the N positions of x: `Context.at`.
    """

    def __init__(self, width: int, context_width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(context_width, width, bias=False)
        self.to_v = nn.Linear(context_width, width, bias=False)
        self.to_out = nn.Sequential(nn.Linear(width, width))

    def forward(self, x: Tensor, context: Context) -> Tensor:
        projected = (self.to_q(x), self.to_k(context.tokens), self.to_v(context.tokens))
        q, k, v = (split_heads(part, self.num_heads) for part in projected)
        return self.to_out(join_heads(attention(q, k, v, context.visible, context.by_position)))


class CrossAttentionBlock(nn.Module):
    """x + attention(norm(x), tokens) for the positions of x [B, C, H, W]: nothing is added at the start.

    eDiff-I has one after each `AttentionBlock` (arXiv 2211.01324).
    """

    def __init__(self, channels: int, num_heads: int, tokens_width: int, norm_groups: int = 32):
        super().__init__()
        self.norm = nn.GroupNorm(norm_groups, channels)
        self.attn = Attention(channels, tokens_width, num_heads)
        zeroed(self.attn.to_out)

    def forward(self, x: Tensor, cond: Cond) -> Tensor:
        h = self.attn(to_tokens(group_norm(self.norm, x)), cond.context.at(x.shape[-2:]))  # [B, N, C]
        return x + to_grid(h, x)


class GEGLU(nn.Module):
    """x W1 * gelu(x W2): [..., width] -> [..., hidden] (arXiv 2002.05202)."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.proj = nn.Linear(width, 2 * hidden)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    """GEGLU of four times the width, and back: [B, N, width] -> [B, N, width]."""

    def __init__(self, width: int):
        super().__init__()
        # The identity stands where the published networks had a dropout of 0: it keeps their numbering.
        self.net = nn.Sequential(GEGLU(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class TransformerBlock(nn.Module):
    """Pre-norm self-attention, cross-attention to the context and feed-forward, each added to x [B, N, width]."""

    def __init__(self, width: int, tokens_width: int, num_heads: int):
        super().__init__()
        self.attn1 = Attention(width, width, num_heads)
        self.ff = FeedForward(width)
        self.attn2 = Attention(width, tokens_width, num_heads)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.norm3 = nn.LayerNorm(width)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        normed = self.norm1(x)
        x = x + self.attn1(normed, Context(normed))
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """`depth` transformer blocks over the positions of x [B, C, H, W], each attending to the context too.

    `linear_projections`: weights of the projections are [C, C], as in Stable Diffusion 2, instead of [C, C, 1, 1].
    """

    def __init__(
        self,
        channels: int,
        num_heads: int,
        tokens_width: int,
        depth: int = 1,
        norm_groups: int = 32,
        linear_projections: bool = False,
    ):
        super().__init__()
        projection = nn.Linear if linear_projections else partial(nn.Conv2d, kernel_size=1)
        self.norm = nn.GroupNorm(norm_groups, channels, eps=1e-6)
        self.proj_in = projection(channels, channels)
        self.transformer_blocks = nn.ModuleList(
            [TransformerBlock(channels, tokens_width, num_heads) for _ in range(depth)]
        )
        self.proj_out = zeroed(projection(channels, channels))

    def forward(self, x: Tensor, cond: Cond) -> Tensor:
        h = pointwise(to_tokens(group_norm(self.norm, x)), self.proj_in)  # [B, N, C]
        context = cond.context.at(x.shape[-2:])
        for block in self.transformer_blocks:
            h = block(h, context)
        return x + to_grid(pointwise(h, self.proj_out), x)
