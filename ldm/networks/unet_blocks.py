"""The blocks of the U-Net of latent diffusion models (arXiv 2112.10752), and how they follow one another.

Which attentions stand where is given to `Blocks` as a function, so that a U-Net with others needs no other blocks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.errors import UserError
from ldm.networks.attention import AttentionBlock, Cond, CrossAttentionBlock
from ldm.networks.layers import conv3x3, zeroed
from ldm.networks.norm_silu import group_norm, norm_silu


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
        norm: Any
        conv: Any
        norm, _, conv = self.in_layers
        h = conv3x3(conv, self.resample(norm_silu(norm, x)))
        emb = self.emb_layers(cond.emb)[:, :, None, None]
        norm, act, dropout, conv = self.out_layers
        if self.scale_shift_norm:
            scale, shift = emb.chunk(2, dim=1)
            h = act(group_norm(norm, h) * (1 + scale) + shift)
        else:
            h = norm_silu(norm, h + emb)
        return self.skip_connection(self.resample(x)) + conv3x3(conv, dropout(h))


# The modules `(h, cond) -> h` that follow a residual block of a width, at its downsampling factor; None: in the middle.
Attentions = Callable[[int, int | None], list[nn.Module]]


@dataclass(frozen=True)
class AtFactors:
    """`Attentions` with one module, `make(width, num_heads)`, at each of `factors` and in the middle.

    `num_heads` heads or heads of `head_channels`: exactly one of the two is given.
    """

    make: Callable[[int, int], nn.Module]
    factors: Sequence[int]
    num_heads: int | None
    head_channels: int | None

    def __post_init__(self) -> None:
        if (self.num_heads is None) == (self.head_channels is None):
            raise UserError("network.num_heads or network.head_channels: set exactly one of the two, the other null")

    def __call__(self, width: int, factor: int | None) -> list[nn.Module]:
        return [self.make(width, self.heads(width))] if factor is None or factor in self.factors else []

    def heads(self, width: int) -> int:
        """The number of heads of an attention of that width."""
        for key, count in {"num_heads": self.num_heads, "head_channels": self.head_channels}.items():
            if count is not None and (count < 1 or width % count):
                raise UserError(f"network.{key}={count}: does not divide {width} channels")
        return self.num_heads or width // self.head_channels


def in_turn(*several: Attentions) -> Attentions:
    """`Attentions` with the modules of each of `several`, one after the other."""
    return lambda width, factor: [module for attentions in several for module in attentions(width, factor)]


def self_then_cross(
    self_factors: Sequence[int], cross_factors: Sequence[int], head_channels: int, tokens_width: int, norm_groups: int
) -> Attentions:
    """Self-attention at some factors, and where there are tokens a block of cross-attention at others, behind it."""
    to_itself = partial(AttentionBlock, legacy_order=False, norm_groups=norm_groups)
    found: Attentions = AtFactors(to_itself, self_factors, None, head_channels)
    if not tokens_width:
        return found
    to_tokens = partial(CrossAttentionBlock, tokens_width=tokens_width, norm_groups=norm_groups)
    return in_turn(found, AtFactors(to_tokens, cross_factors, None, head_channels))


@dataclass(frozen=True)
class Blocks:
    """Makes the blocks of one U-Net, or of its encoder alone; all fields but the attentions are arguments of `UNet`."""

    channels: int
    multipliers: Sequence[int]
    num_blocks: int
    attentions: Attentions
    dropout: float = 0.0
    scale_shift_norm: bool = False
    resblock_updown: bool = False
    norm_groups: int = 32

    def __post_init__(self) -> None:
        if self.channels % self.norm_groups:
            raise UserError(
                f"network.channels={self.channels} must be a multiple of network.norm_groups={self.norm_groups}"
            )

    @property
    def emb_width(self) -> int:
        """Width of the embedding of noise level and vectors."""
        return 4 * self.channels

    def embedding(self, width: int) -> nn.Sequential:
        """Two layers from `width` to the width of the embedding."""
        return nn.Sequential(nn.Linear(width, self.emb_width), nn.SiLU(), nn.Linear(self.emb_width, self.emb_width))

    def res(self, width: int, out_width: int, **resample: bool) -> nn.Module:
        """A residual block."""
        return ResBlock(
            width, out_width, self.emb_width, self.dropout, self.scale_shift_norm,
            norm_groups=self.norm_groups, **resample,
        )  # fmt: skip

    def block(self, width: int, out_width: int, factor: int) -> list[nn.Module]:
        """A residual block, and the attentions of this downsampling factor."""
        return [self.res(width, out_width), *self.attentions(out_width, factor)]

    def encoder(self, in_channels: int) -> tuple[nn.ModuleList, list[int]]:
        """From the input to the lowest level, and the width that each entry gives."""
        width = self.channels
        widths = [width]
        layers = nn.ModuleList([nn.Sequential(nn.Conv2d(in_channels, width, 3, padding=1))])
        for level, multiplier in enumerate(self.multipliers):
            for _ in range(self.num_blocks):
                layers.append(nn.ModuleList(self.block(width, self.channels * multiplier, 2**level)))
                width = self.channels * multiplier
                widths.append(width)
            if level != len(self.multipliers) - 1:
                down = self.res(width, width, down=True) if self.resblock_updown else Downsample(width)
                layers.append(nn.ModuleList([down]))
                widths.append(width)
        return layers, widths

    def middle(self, width: int) -> nn.ModuleList:
        """Between encoder and decoder: the attentions of the middle between two residual blocks."""
        return nn.ModuleList([self.res(width, width), *self.attentions(width, None), self.res(width, width)])


def apply(layers: nn.ModuleList, h: Tensor, cond: Cond, skip: Tensor | None = None) -> Tensor:
    """One entry of the blocks: its layers one after the other, on h joined with `skip`."""
    if skip is not None:
        h = torch.cat([h, skip], dim=1)
    for layer in layers:
        h = layer(h, cond)
    return h
