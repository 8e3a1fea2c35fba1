"""The U-Net of latent diffusion models (arXiv 2112.10752; ablated by ADM, arXiv 2105.05233), with the published names.

Noise level and vectors enter every residual block; tokens enter by cross-attention; concats as extra input channels.
It does not know what the conditions mean, nor in which parametrisation its output is read.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.networks.attention import Cond, SelfAttention, SpatialTransformer
from ldm.networks.layers import conv3x3, sinusoid, zeroed


class Downsample(nn.Module):
    """Halve height and width by a 3x3 convolution of stride 2."""

    def __init__(self, channels: int):
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor, cond: Cond) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    """Double height and width: nearest neighbour, then a 3x3 convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, cond: Cond) -> Tensor:
        return conv3x3(self.conv, _repeat(x))


def _repeat(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def _halve(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 2)


class ResBlock(nn.Module):
    """Two normalised 3x3 convolutions beside a skip; the embedding is added, or scales and shifts, between them.

    `down` or `up` halves or doubles height and width inside the block, before its first convolution.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        emb_width: int,
        dropout: float = 0.0,
        scale_shift_norm: bool = False,
        down: bool = False,
        up: bool = False,
        norm_groups: int = 32,
    ):
        super().__init__()
        self.scale_shift_norm = scale_shift_norm
        self.resample = _halve if down else _repeat if up else nn.Identity()
        self.in_layers = nn.Sequential(
            nn.GroupNorm(norm_groups, channels), nn.SiLU(), nn.Conv2d(channels, out_channels, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(
            nn.SiLU(), nn.Linear(emb_width, 2 * out_channels if scale_shift_norm else out_channels)
        )
        self.out_layers = nn.Sequential(
            nn.GroupNorm(norm_groups, out_channels),
            nn.SiLU(),
            nn.Dropout(dropout),
            zeroed(nn.Conv2d(out_channels, out_channels, 3, padding=1)),
        )
        self.skip_connection = nn.Identity() if channels == out_channels else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor, cond: Cond) -> Tensor:
        norm, act, conv = self.in_layers
        h = conv3x3(conv, self.resample(act(norm(x))))
        emb = self.emb_layers(cond.emb)[:, :, None, None]
        norm, act, dropout, conv = self.out_layers
        if self.scale_shift_norm:
            scale, shift = emb.chunk(2, dim=1)
            h = norm(h) * (1 + scale) + shift
        else:
            h = norm(h + emb)
        return self.skip_connection(self.resample(x)) + conv3x3(conv, dropout(act(h)))


class UNet(nn.Module):
    """F(x, c_noise, conditions): x [B, in_channels, H, W] -> [B, out_channels, H, W], zero at initialisation.

    `channels * multipliers[l]` is the width of level l, `attention_factors` the downsampling factors at which it
    attends (the middle always does), with `num_heads` heads or heads of `head_channels`: give one of the two.
    With `tokens_width` 0 the attention blocks are plain self-attention, else transformers of `transformer_depth`.
    `vector_width` 0: no vector; `concat_channels` are appended to the input. `patch_size` p folds p x p positions into
    channels first, and unfolds them last (arXiv 2301.11093, section 3.2): for small budgets. The argument list is the
    paper's table.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        channels: int,
        multipliers: Sequence[int],
        num_blocks: int = 2,
        attention_factors: Sequence[int] = (),
        num_heads: int | None = None,
        head_channels: int | None = None,
        tokens_width: int = 0,
        vector_width: int = 0,
        concat_channels: int = 0,
        transformer_depth: int = 1,
        dropout: float = 0.0,
        scale_shift_norm: bool = False,
        resblock_updown: bool = False,
        legacy_attention_order: bool = True,
        norm_groups: int = 32,
        patch_size: int = 1,
    ):
        super().__init__()
        if (num_heads is None) == (head_channels is None):
            raise ValueError("network.num_heads or network.head_channels: set exactly one of the two, the other null")
        if channels % norm_groups:
            raise ValueError(f"network.channels={channels} must be a multiple of network.norm_groups={norm_groups}")
        self.channels = channels
        self.in_channels = in_channels
        self.concat_channels = concat_channels
        self.tokens_width = tokens_width
        self.vector_width = vector_width
        self.patch_size = patch_size
        self.factor = patch_size * 2 ** (len(multipliers) - 1)  # height and width must be multiples of it
        emb_width = 4 * channels

        def res(width: int, out_width: int, **resample: bool) -> nn.Module:
            return ResBlock(width, out_width, emb_width, dropout, scale_shift_norm, norm_groups=norm_groups, **resample)

        def attend(width: int) -> nn.Module:
            heads = num_heads or width // head_channels
            if width % heads or (head_channels and width % head_channels):
                raise ValueError(
                    f"network.{'num_heads' if num_heads else 'head_channels'}: does not divide {width} channels"
                )
            if tokens_width:
                return SpatialTransformer(width, tokens_width, heads, transformer_depth, norm_groups)
            return SelfAttention(width, heads, legacy_attention_order, norm_groups)

        def block(width: int, out_width: int, factor: int) -> list[nn.Module]:
            return [res(width, out_width), *([attend(out_width)] if factor in attention_factors else [])]

        self.time_embed = _embedding(channels, emb_width)
        if vector_width:
            self.label_emb = nn.Sequential(_embedding(vector_width, emb_width))

        width = channels
        skips = [width]
        last = len(multipliers) - 1
        self.input_blocks = nn.ModuleList(
            [nn.Sequential(nn.Conv2d((in_channels + concat_channels) * patch_size**2, width, 3, padding=1))]
        )
        for level, multiplier in enumerate(multipliers):
            for _ in range(num_blocks):
                self.input_blocks.append(nn.ModuleList(block(width, channels * multiplier, 2**level)))
                width = channels * multiplier
                skips.append(width)
            if level != last:
                down = res(width, width, down=True) if resblock_updown else Downsample(width)
                self.input_blocks.append(nn.ModuleList([down]))
                skips.append(width)

        self.middle_block = nn.ModuleList([res(width, width), attend(width), res(width, width)])

        self.output_blocks = nn.ModuleList()
        for level, multiplier in reversed(list(enumerate(multipliers))):
            for place in range(num_blocks + 1):
                layers = block(width + skips.pop(), channels * multiplier, 2**level)
                width = channels * multiplier
                if level and place == num_blocks:
                    layers.append(res(width, width, up=True) if resblock_updown else Upsample(width))
                self.output_blocks.append(nn.ModuleList(layers))

        self.out = nn.Sequential(
            nn.GroupNorm(norm_groups, width),
            nn.SiLU(),
            zeroed(nn.Conv2d(width, out_channels * patch_size**2, 3, padding=1)),
        )

    def forward(
        self,
        x: Tensor,
        c_noise: Tensor,
        *,
        vector: Tensor | None = None,
        tokens: Tensor | None = None,
        tokens_mask: Tensor | None = None,
        concat: Tensor | None = None,
    ) -> Tensor:
        """x [B, in_channels, H, W] and c_noise [B] -> [B, out_channels, H, W].

        vector [B, vector_width], tokens [B, N, tokens_width] with tokens_mask [B, N] (True = real), concat
        [B, concat_channels, H, W]: all that the network was built for must be given, and nothing else.
        """
        self._check(x, vector, tokens, concat)
        emb = self.time_embed(sinusoid(c_noise, self.channels))  # [B, 4 channels]
        if vector is not None:
            emb = emb + self.label_emb(vector)
        if concat is not None:
            x = torch.cat([x, concat.to(x.dtype)], dim=1)
        cond = Cond(emb, tokens, None if tokens_mask is None else tokens_mask[:, None, None, :])

        h = self.input_blocks[0](F.pixel_unshuffle(x, self.patch_size))
        skips = [h]
        for block in self.input_blocks[1:]:
            h = _apply(block, h, cond)
            skips.append(h)
        h = _apply(self.middle_block, h, cond)
        for block in self.output_blocks:
            h = _apply(block, torch.cat([h, skips.pop()], dim=1), cond)
        return F.pixel_shuffle(self.out(h), self.patch_size)

    def _check(self, x: Tensor, vector: Tensor | None, tokens: Tensor | None, concat: Tensor | None) -> None:
        expected = {
            "x": (self.in_channels, x.shape[1]),
            "vector": (self.vector_width, 0 if vector is None else vector.shape[-1]),
            "tokens": (self.tokens_width, 0 if tokens is None else tokens.shape[-1]),
            "concat": (self.concat_channels, 0 if concat is None else concat.shape[1]),
        }
        for name, (built_for, given) in expected.items():
            if given != built_for:
                raise ValueError(f"{name}: the network was built for width {built_for} and got {given} (0: none)")
        if x.shape[-2] % self.factor or x.shape[-1] % self.factor:
            raise ValueError(f"x: height and width {tuple(x.shape[-2:])} must be multiples of {self.factor}")


def _apply(layers: nn.ModuleList, h: Tensor, cond: Cond) -> Tensor:
    for layer in layers:
        h = layer(h, cond)
    return h


def _embedding(width: int, out_width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, out_width), nn.SiLU(), nn.Linear(out_width, out_width))
