"""The convolutional autoencoder of the published first stages (arXiv 2112.10752, section 3.1), with their names.

`encode` gives what a regulariser turns into a latent (for KL: means and log-variances), `decode` takes the latent.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from ldm.errors import UserError
from ldm.networks.layers import attention, pointwise, through, to_grid, to_tokens
from ldm.networks.norm_silu import norm_silu


def _norm(channels: int, norm_groups: int) -> nn.GroupNorm:
    return nn.GroupNorm(norm_groups, channels, eps=1e-6)


class ResnetBlock(nn.Module):
    """Two normalised 3x3 convolutions beside a skip."""

    def __init__(self, channels: int, out_channels: int, dropout: float, norm_groups: int):
        super().__init__()
        self.norm1 = _norm(channels, norm_groups)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.norm2 = _norm(out_channels, norm_groups)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        if channels != out_channels:
            self.nin_shortcut = nn.Conv2d(channels, out_channels, 1)
        self.widens = channels != out_channels

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(norm_silu(self.norm1, x))
        h = self.conv2(self.dropout(norm_silu(self.norm2, h)))
        return h + (self.nin_shortcut(x) if self.widens else x)


class AttnBlock(nn.Module):
    """Self-attention over all positions with a single head of all channels."""

    def __init__(self, channels: int, norm_groups: int):
        super().__init__()
        self.norm = _norm(channels, norm_groups)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        tokens = to_tokens(self.norm(x)).contiguous()
        q, k, v = (pointwise(tokens, conv)[:, None] for conv in (self.q, self.k, self.v))  # [B, 1, N, C]
        return x + to_grid(pointwise(attention(q, k, v)[:, 0], self.proj_out), x)


class Downsample(nn.Module):
    """Halve height and width: zero padding at the right and the bottom only, then a 3x3 convolution of stride 2."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Double height and width: nearest neighbour, then a 3x3 convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """Residual blocks of one resolution, each followed by attention where the level attends."""

    def __init__(self, widths: Sequence[int], attends: bool, dropout: float, norm_groups: int, recompute: bool):
        super().__init__()
        self.recompute = recompute
        pairs = list(pairwise(widths))
        self.block = nn.ModuleList([ResnetBlock(a, b, dropout, norm_groups) for a, b in pairs])
        self.attn = nn.ModuleList([AttnBlock(b, norm_groups) for _, b in pairs] if attends else [])
        self.attends = attends

    def forward(self, h: Tensor) -> Tensor:
        for place, block in enumerate(self.block):
            h = through(block, h, recompute=self.recompute)
            if self.attends:
                h = through(self.attn[place], h, recompute=self.recompute)
        return h


class Middle(nn.Module):
    """Residual block, attention (unless left out), residual block at the lowest resolution."""

    def __init__(self, channels: int, attends: bool, dropout: float, norm_groups: int, recompute: bool):
        super().__init__()
        self.recompute = recompute
        self.block_1 = ResnetBlock(channels, channels, dropout, norm_groups)
        self.attn_1 = AttnBlock(channels, norm_groups) if attends else nn.Identity()
        self.block_2 = ResnetBlock(channels, channels, dropout, norm_groups)

    def forward(self, h: Tensor) -> Tensor:
        for layer in (self.block_1, self.attn_1, self.block_2):
            h = through(layer, h, recompute=self.recompute)
        return h


class Encoder(nn.Module):
    """[B, image_channels, H, W] -> [B, out_channels, H / f, W / f]."""

    def __init__(
        self,
        image_channels: int,
        out_channels: int,
        widths: Sequence[int],
        num_blocks: int,
        attends: Sequence[bool],
        mid_attention: bool,
        dropout: float,
        norm_groups: int,
        recompute: bool,
    ):
        super().__init__()
        self.conv_in = nn.Conv2d(image_channels, widths[0], 3, padding=1)
        self.down = nn.ModuleList()
        width = widths[0]
        for level, out_width in enumerate(widths):
            stage = Level([width] + [out_width] * num_blocks, attends[level], dropout, norm_groups, recompute)
            if level != len(widths) - 1:
                stage.downsample = Downsample(out_width)
            self.down.append(stage)
            width = out_width
        self.mid = Middle(width, mid_attention, dropout, norm_groups, recompute)
        self.norm_out = _norm(width, norm_groups)
        self.conv_out = nn.Conv2d(width, out_channels, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        h = self.conv_in(image)
        for stage in self.down[:-1]:
            h = stage.downsample(stage(h))
        h = self.mid(self.down[-1](h))
        return self.conv_out(norm_silu(self.norm_out, h))


class Decoder(nn.Module):
    """[B, in_channels, H / f, W / f] -> [B, image_channels, H, W]; `up` is indexed by level, 0 = full resolution."""

    def __init__(
        self,
        image_channels: int,
        in_channels: int,
        widths: Sequence[int],
        num_blocks: int,
        attends: Sequence[bool],
        mid_attention: bool,
        dropout: float,
        norm_groups: int,
        recompute: bool,
    ):
        super().__init__()
        width = widths[-1]
        self.conv_in = nn.Conv2d(in_channels, width, 3, padding=1)
        self.mid = Middle(width, mid_attention, dropout, norm_groups, recompute)
        stages = []
        for level in reversed(range(len(widths))):
            stage = Level([width] + [widths[level]] * (num_blocks + 1), attends[level], dropout, norm_groups, recompute)
            if level:
                stage.upsample = Upsample(widths[level])
            stages.append(stage)
            width = widths[level]
        self.up = nn.ModuleList(reversed(stages))
        self.norm_out = _norm(width, norm_groups)
        self.conv_out = nn.Conv2d(width, image_channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.mid(self.conv_in(z))
        for level in reversed(range(1, len(self.up))):
            h = self.up[level].upsample(self.up[level](h))
        h = self.up[0](h)
        return self.conv_out(norm_silu(self.norm_out, h))


class Autoencoder(nn.Module):
    """Encoder and decoder with downsampling factor f = 2^(levels - 1).

    `channels * multipliers[l]` is the width of level l and `attention_factors` the downsampling factors at which it
    attends. `moment_channels` go from the encoder to the regulariser, `latent_channels` from there to the decoder; the
    two are as wide as for `z_channels` where that is not the latent's (embed_dim in published configs), by 1x1
    convolutions between.
    `checkpoint_activations`: the backward pass computes each block again from its input.
    """

    def __init__(
        self,
        moment_channels: int,
        latent_channels: int,
        channels: int = 128,
        multipliers: Sequence[int] = (1, 2, 4),
        num_blocks: int = 2,
        attention_factors: Sequence[int] = (),
        mid_attention: bool = True,
        dropout: float = 0.0,
        norm_groups: int = 32,
        image_channels: int = 3,
        checkpoint_activations: bool = False,
        z_channels: int | None = None,
    ):
        super().__init__()
        if z_channels is not None and z_channels < 1:
            raise UserError(f"autoencoder.z_channels={z_channels}: must be at least 1, or null for the latent's own")
        if len(multipliers) < 2:
            raise UserError(
                "autoencoder.multipliers: one level is f = 1, pixel space, where there is nothing to train; train the "
                "diffusion model with first_stage=null, or sweep over f: scripts/sweep_f.py f=[1,2,4]"
            )
        if channels % norm_groups:
            raise UserError(f"autoencoder.channels={channels} must be a multiple of norm_groups={norm_groups}")
        self.f = 2 ** (len(multipliers) - 1)
        self.image_channels = image_channels
        self.latent_channels = latent_channels
        widths = [channels * multiplier for multiplier in multipliers]
        attends = [2**level in attention_factors for level in range(len(multipliers))]
        shared = (widths, num_blocks, attends, mid_attention, dropout, norm_groups, checkpoint_activations)
        z_channels = z_channels or latent_channels
        z_moments = z_channels * (moment_channels // latent_channels)
        self.encoder = Encoder(image_channels, z_moments, *shared)
        self.decoder = Decoder(image_channels, z_channels, *shared)
        self.quant_conv = nn.Conv2d(z_moments, moment_channels, 1)
        self.post_quant_conv = nn.Conv2d(latent_channels, z_channels, 1)

    @property
    def last_layer(self) -> Tensor:
        """Weight of the last convolution, where the adaptive weight of the adversarial loss is measured."""
        return self.decoder.conv_out.weight

    def encode(self, image: Tensor) -> Tensor:
        """Image [B, image_channels, H, W] in [-1, 1] -> h [B, moment_channels, H / f, W / f]."""
        _, channels, height, width = image.shape
        if channels != self.image_channels:
            raise UserError(f"image has {channels} channels, the autoencoder takes {self.image_channels}")
        if height % self.f or width % self.f:
            raise UserError(f"image of {height} x {width}: height and width must be multiples of f = {self.f}")
        return self.quant_conv(self.encoder(image))

    def decode(self, z: Tensor) -> Tensor:
        """Latent z [B, latent_channels, h, w] -> image [B, image_channels, h * f, w * f]."""
        if z.shape[1] != self.latent_channels:
            raise UserError(f"latent has {z.shape[1]} channels, the autoencoder takes {self.latent_channels}")
        return self.decoder(self.post_quant_conv(z))
