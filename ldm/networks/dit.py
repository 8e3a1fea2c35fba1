"""The diffusion transformer DiT (arXiv:2212.09748) with adaLN-Zero, and cross-attention to tokens in some blocks.

Noise level and vectors scale, shift and gate every block; tokens enter by cross-attention between self-attention and
feed-forward (the paper's second variant); concats are extra input channels. It does not know what the conditions mean.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.errors import UserError
from ldm.networks.attention import Attention, SelfAttention
from ldm.networks.context import Context
from ldm.networks.inputs import check_inputs
from ldm.networks.layers import sinusoid, through, to_tokens, zeroed

NOISE_WIDTH = 256  # sinusoids of the noise level, as published


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Scale and shift tokens x [B, N, width] by one vector [B, width] each."""
    return x * (1 + scale[:, None]) + shift[:, None]


def positions(height: int, width: int, channels: int, like: Tensor) -> Tensor:
    """Sines, then cosines, of each row's number and then of each column's: [height * width, channels].

    The frequencies are 10^4^(-i / (channels / 4)), `channels` is a multiple of 4.
    """
    quarter = channels // 4
    frequencies = torch.exp(torch.arange(quarter, device=like.device) * (-math.log(1e4) / quarter))
    columns = torch.arange(width, device=like.device)[:, None] * frequencies
    rows = torch.arange(height, device=like.device)[:, None] * frequencies
    columns = torch.cat([columns.sin(), columns.cos()], dim=1).expand(height, width, -1)
    rows = torch.cat([rows.sin(), rows.cos()], dim=1)[:, None].expand(height, width, -1)
    return torch.cat([columns, rows], dim=-1).flatten(0, 1)


class DiTBlock(nn.Module):
    """Self-attention, cross-attention if `tokens_width`, and feed-forward, each added to x [B, N, width].

    `cond` [B, width] gives shift, scale and gate of the first and of the last; all begin as zero, as does what
    cross-attention adds, so the block begins as the identity.
    """

    def __init__(self, width: int, num_heads: int, mlp_ratio: float, tokens_width: int, dropout: float):
        super().__init__()
        hidden = int(mlp_ratio * width)
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attn = SelfAttention(width, num_heads)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU("tanh"), nn.Dropout(dropout), nn.Linear(hidden, width)
        )
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.norm_cross = nn.LayerNorm(width, eps=1e-6) if tokens_width else None
        self.cross = Attention(width, tokens_width, num_heads) if tokens_width else None

    def reset(self) -> None:
        """Begin as the identity."""
        zeroed(self.adaLN_modulation[-1])
        if self.cross is not None:
            zeroed(self.cross.to_out)

    def forward(self, x: Tensor, cond: Tensor, context: Context | None) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(cond).chunk(6, dim=1)
        x = x + gate1[:, None] * self.attn(modulate(self.norm1(x), shift1, scale1))
        if self.cross is not None:
            x = x + self.cross(self.norm_cross(x), context)
        return x + gate2[:, None] * self.mlp(modulate(self.norm2(x), shift2, scale2))


class DiT(nn.Module):
    """F(x, c_noise, conditions): x [B, in_channels, H, W] -> [B, out_channels, H, W], zero at initialisation.

    Patches of `patch_size` p are the tokens, H W / p^2 of them, `width` wide (a multiple of 4), through `depth` blocks
    with `num_heads` heads. With `tokens_width` every `cross_attention_every`-th block, the first of them too, attends
    to the condition's tokens. `vector_width` 0: no vector; `concat_channels` are appended to the input. `dropout` is
    inside the feed-forwards. `checkpoint_activations`: the backward pass computes each block again from its input. The
    argument list is the paper's table 1.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        patch_size: int,
        width: int,
        depth: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        tokens_width: int = 0,
        vector_width: int = 0,
        concat_channels: int = 0,
        cross_attention_every: int = 1,
        dropout: float = 0.0,
        checkpoint_activations: bool = False,
    ):
        super().__init__()
        if width % 4 or width % num_heads:
            raise UserError(f"network.width={width}: must be a multiple of 4 and of network.num_heads={num_heads}")
        for key, value in {"patch_size": patch_size, "cross_attention_every": cross_attention_every}.items():
            if value < 1:
                raise UserError(f"network.{key}={value}: must be at least 1")
        self.in_channels = in_channels
        self.concat_channels = concat_channels
        self.tokens_width = tokens_width
        self.vector_width = vector_width
        self.patch_size = patch_size
        self.checkpoint_activations = checkpoint_activations
        self.factor = patch_size  # height and width must be multiples of it

        self.x_embedder = nn.Linear((in_channels + concat_channels) * patch_size**2, width)
        self.t_embedder = nn.Sequential(nn.Linear(NOISE_WIDTH, width), nn.SiLU(), nn.Linear(width, width))
        self.y_embedder = None
        if vector_width:
            self.y_embedder = nn.Sequential(nn.Linear(vector_width, width), nn.SiLU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList(
            DiTBlock(width, num_heads, mlp_ratio, 0 if place % cross_attention_every else tokens_width, dropout)
            for place in range(depth)
        )
        self.aligned_layer = (f"blocks.{depth // 3}", width)  # early, as REPA found best: the 9th of 28
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
        self.out = nn.Linear(width, out_channels * patch_size**2)
        self._initialise()

    def _initialise(self) -> None:
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        for layer in (self.t_embedder[0], self.t_embedder[2]):
            nn.init.normal_(layer.weight, std=0.02)
        for block in self.blocks:
            block.reset()
        zeroed(self.adaLN_modulation[-1])
        zeroed(self.out)

    def forward(
        self,
        x: Tensor,
        c_noise: Tensor,
        *,
        vector: Tensor | None = None,
        tokens: Tensor | None = None,
        tokens_mask: Tensor | None = None,
        tokens_bias: Tensor | None = None,
        concat: Tensor | None = None,
    ) -> Tensor:
        """x [B, in_channels, H, W] and c_noise [B] -> [B, out_channels, H, W].

        vector [B, vector_width], tokens [B, M, tokens_width] with tokens_mask [B, M] (True = real; `Context`), concat
        [B, concat_channels, H, W]: all that the network was built for must be given, and nothing else.
        tokens_bias [B, M, H, W], if given, draws positions to tokens (`Context`).
        """
        check_inputs(self, x, vector, tokens, tokens_bias, concat)
        cond = self.t_embedder(sinusoid(c_noise, NOISE_WIDTH))  # [B, width]
        if vector is not None:
            cond = cond + self.y_embedder(vector)
        if concat is not None:
            x = torch.cat([x, concat.to(x.dtype)], dim=1)

        folded = F.pixel_unshuffle(x, self.patch_size)  # [B, C p^2, H / p, W / p]
        size = folded.shape[2:]
        context = None if tokens is None else Context(tokens, tokens_mask, tokens_bias).at(size)
        h = self.x_embedder(to_tokens(folded))  # [B, N, width]
        h = h + positions(size[0], size[1], h.shape[-1], like=h).to(h.dtype)
        for block in self.blocks:
            h = through(block, h, cond, context, recompute=self.checkpoint_activations)
        shift, scale = self.adaLN_modulation(cond).chunk(2, dim=1)
        h = self.out(modulate(self.norm(h), shift, scale))  # [B, N, out p^2]
        return F.pixel_shuffle(h.transpose(1, 2).unflatten(2, size), self.patch_size)
