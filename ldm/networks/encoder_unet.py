"""The encoder half of the U-Net as a classifier of noisy latents (ADM, arXiv 2105.05233, section 4).

Blocks and names are those of `unet.UNet`; an attention pool over the lowest level gives the logits.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from ldm.networks.attention import AttentionBlock, Cond
from ldm.networks.layers import attention, join_heads, pointwise, sinusoid, split_heads, through, zeroed
from ldm.networks.unet_blocks import AtFactors, Blocks, apply


class AttentionPool(nn.Module):
    """x [B, C, size, size] -> [B, out_width]: the mean position attends to all and to itself, as in CLIP."""

    def __init__(self, channels: int, size: int, num_heads: int, out_width: int):
        super().__init__()
        self.num_heads = num_heads
        self.positional_embedding = nn.Parameter(torch.randn(channels, size**2 + 1) / channels**0.5)
        self.qkv_proj = nn.Conv1d(channels, 3 * channels, 1)
        self.c_proj = zeroed(nn.Conv1d(channels, out_width, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2)  # [B, C, N]
        x = torch.cat([x.mean(-1, keepdim=True), x], dim=-1) + self.positional_embedding
        q, k, v = pointwise(x.transpose(1, 2), self.qkv_proj).chunk(3, dim=-1)  # [B, N + 1, C] each
        q, k, v = (split_heads(t, self.num_heads) for t in (q[:, :1], k, v))
        return pointwise(join_heads(attention(q, k, v)), self.c_proj)[:, 0]


class EncoderUNet(nn.Module):
    """Class logits of noisy latents: x [B, in_channels, latent_size, latent_size] -> [B, num_classes], zero at first.

    All other arguments as of `UNet`.
    """

    def __init__(
        self,
        in_channels: int,
        latent_size: int,
        num_classes: int,
        channels: int,
        multipliers: Sequence[int],
        num_blocks: int = 2,
        attention_factors: Sequence[int] = (),
        num_heads: int | None = None,
        head_channels: int | None = None,
        dropout: float = 0.0,
        scale_shift_norm: bool = False,
        resblock_updown: bool = False,
        legacy_attention_order: bool = True,
        norm_groups: int = 32,
        checkpoint_activations: bool = False,
    ):
        super().__init__()
        factor = 2 ** (len(multipliers) - 1)
        if num_classes < 2:
            raise ValueError(f"network.num_classes={num_classes}: needs at least two classes to tell apart")
        if latent_size % factor:
            raise ValueError(
                f"network.multipliers: {len(multipliers)} levels halve {len(multipliers) - 1} times, but the latents "
                f"are {latent_size} wide; take fewer levels or another image_size"
            )
        attention = partial(AttentionBlock, legacy_order=legacy_attention_order, norm_groups=norm_groups)
        attentions = AtFactors(attention, attention_factors, num_heads, head_channels)
        blocks = Blocks(
            channels, multipliers, num_blocks, attentions, dropout, scale_shift_norm, resblock_updown, norm_groups
        )
        self.channels = channels
        self.shape = (in_channels, latent_size, latent_size)
        self.num_classes = num_classes
        self.checkpoint_activations = checkpoint_activations
        self.time_embed = blocks.embedding(channels)
        self.input_blocks, widths = blocks.encoder(in_channels)
        width = widths[-1]
        self.middle_block = blocks.middle(width)
        self.out = nn.Sequential(
            nn.GroupNorm(norm_groups, width),
            nn.SiLU(),
            AttentionPool(width, latent_size // factor, attentions.heads(width), num_classes),
        )

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        """x [B, in_channels, latent_size, latent_size] and c_noise [B] -> logits [B, num_classes]."""
        if x.shape[1:] != self.shape:
            raise ValueError(f"the classifier was built for latents {self.shape} and got {tuple(x.shape[1:])}")
        cond = Cond(self.time_embed(sinusoid(c_noise, self.channels)), None)
        h = self.input_blocks[0](x)
        for block in self.input_blocks[1:]:
            h = through(apply, block, h, cond, recompute=self.checkpoint_activations)
        h = through(apply, self.middle_block, h, cond, recompute=self.checkpoint_activations)
        return self.out(h)
