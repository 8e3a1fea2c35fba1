"""The U-Net of latent diffusion models (arXiv 2112.10752; ablated by ADM, arXiv 2105.05233), with the published names.

Noise level and vectors enter every residual block; tokens enter by cross-attention; concats as extra input channels.
It does not know what the conditions mean, nor in which parametrisation its output is read.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.errors import UserError
from ldm.networks.attention import Cond, SelfAttention, SpatialTransformer
from ldm.networks.inputs import check_inputs
from ldm.networks.layers import conv3x3, sinusoid, through, zeroed
from ldm.networks.norm_silu import norm_silu


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
        norm, _, conv = self.in_layers
        h = conv3x3(conv, self.resample(norm_silu(norm, x)))
        emb = self.emb_layers(cond.emb)[:, :, None, None]
        norm, act, dropout, conv = self.out_layers
        if self.scale_shift_norm:
            scale, shift = emb.chunk(2, dim=1)
            h = act(norm(h) * (1 + scale) + shift)
        else:
            h = norm_silu(norm, h + emb)
        return self.skip_connection(self.resample(x)) + conv3x3(conv, dropout(h))


@dataclass(frozen=True)
class Blocks:
    """Makes the blocks of one U-Net, or of its encoder alone; the fields are arguments of `UNet`."""

    channels: int
    multipliers: Sequence[int]
    num_blocks: int
    attention_factors: Sequence[int]
    num_heads: int | None
    head_channels: int | None
    tokens_width: int = 0
    transformer_depth: int = 1
    linear_projections: bool = False
    dropout: float = 0.0
    scale_shift_norm: bool = False
    resblock_updown: bool = False
    legacy_attention_order: bool = True
    norm_groups: int = 32

    def __post_init__(self) -> None:
        if (self.num_heads is None) == (self.head_channels is None):
            raise UserError("network.num_heads or network.head_channels: set exactly one of the two, the other null")
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

    def heads(self, width: int) -> int:
        """The number of heads of an attention of that width."""
        heads = self.num_heads or width // self.head_channels
        if width % heads or (self.head_channels and width % self.head_channels):
            key = "num_heads" if self.num_heads else "head_channels"
            raise UserError(f"network.{key}: does not divide {width} channels")
        return heads

    def res(self, width: int, out_width: int, **resample: bool) -> nn.Module:
        """A residual block."""
        return ResBlock(
            width, out_width, self.emb_width, self.dropout, self.scale_shift_norm,
            norm_groups=self.norm_groups, **resample,
        )  # fmt: skip

    def attend(self, width: int) -> nn.Module:
        """An attention block."""
        if self.tokens_width:
            return SpatialTransformer(
                width, self.tokens_width, self.heads(width), self.transformer_depth, self.norm_groups,
                self.linear_projections,
            )  # fmt: skip
        return SelfAttention(width, self.heads(width), self.legacy_attention_order, self.norm_groups)

    def block(self, width: int, out_width: int, factor: int) -> list[nn.Module]:
        """A residual block, and an attention where this downsampling factor has one."""
        return [
            self.res(width, out_width),
            *([self.attend(out_width)] if factor in self.attention_factors else []),
        ]

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
        """Between encoder and decoder; it always attends."""
        return nn.ModuleList([self.res(width, width), self.attend(width), self.res(width, width)])


class UNet(nn.Module):
    """F(x, c_noise, conditions): x [B, in_channels, H, W] -> [B, out_channels, H, W], zero at initialisation.

    `channels * multipliers[l]` is the width of level l, `attention_factors` the downsampling factors at which it
    attends (the middle always does), with `num_heads` heads or heads of `head_channels`: give one of the two.
    With `tokens_width` 0 the attention blocks are plain self-attention, else transformers of `transformer_depth`.
    `vector_width` 0: no vector; one is brought to the width of the noise embedding, 4 channels, unless it has that and
    `project_vector` is false, as the classes of models of num_classes. `concat_channels` are appended to the input.
    `patch_size` p folds p x p positions into channels first, and unfolds them last (arXiv 2301.11093, section 3.2): for
    small budgets. `checkpoint_activations`: the backward pass computes each block again from its input. The argument
    list is the paper's table.
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
        linear_projections: bool = False,
        dropout: float = 0.0,
        scale_shift_norm: bool = False,
        resblock_updown: bool = False,
        legacy_attention_order: bool = True,
        norm_groups: int = 32,
        patch_size: int = 1,
        checkpoint_activations: bool = False,
        project_vector: bool = True,
    ):
        super().__init__()
        blocks = Blocks(
            channels, multipliers, num_blocks, attention_factors, num_heads, head_channels, tokens_width,
            transformer_depth, linear_projections, dropout, scale_shift_norm, resblock_updown, legacy_attention_order,
            norm_groups,
        )  # fmt: skip
        self.channels = channels
        self.in_channels = in_channels
        self.concat_channels = concat_channels
        self.tokens_width = tokens_width
        self.vector_width = vector_width
        self.patch_size = patch_size
        self.checkpoint_activations = checkpoint_activations
        self.factor = patch_size * 2 ** (len(multipliers) - 1)  # height and width must be multiples of it

        self.time_embed = blocks.embedding(channels)
        if not project_vector and vector_width != blocks.emb_width:
            raise UserError(
                f"network.project_vector=false: the vector is added to an embedding of width {blocks.emb_width} = "
                f"4 network.channels, and it is {vector_width} wide; set conditioner.label.width={blocks.emb_width}"
            )
        if vector_width:
            layers = [blocks.embedding(vector_width)] if project_vector else []
            self.label_emb = nn.Sequential(*layers)
        self.input_blocks, skips = blocks.encoder((in_channels + concat_channels) * patch_size**2)
        width = skips[-1]
        self.middle_block = blocks.middle(width)

        self.output_blocks = nn.ModuleList()
        for level, multiplier in reversed(list(enumerate(multipliers))):
            for place in range(num_blocks + 1):
                layers = blocks.block(width + skips.pop(), channels * multiplier, 2**level)
                width = channels * multiplier
                if level and place == num_blocks:
                    layers.append(blocks.res(width, width, up=True) if resblock_updown else Upsample(width))
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
        check_inputs(self, x, vector, tokens, concat)
        emb = self.time_embed(sinusoid(c_noise, self.channels))  # [B, 4 channels]
        if vector is not None:
            emb = emb + self.label_emb(vector)
        if concat is not None:
            x = torch.cat([x, concat.to(x.dtype)], dim=1)
        cond = Cond(emb, tokens, None if tokens_mask is None else tokens_mask[:, None, None, :])

        h = self.input_blocks[0](F.pixel_unshuffle(x, self.patch_size))
        skips = [h]
        for block in self.input_blocks[1:]:
            h = through(apply, block, h, cond, recompute=self.checkpoint_activations)
            skips.append(h)
        h = through(apply, self.middle_block, h, cond, recompute=self.checkpoint_activations)
        for block in self.output_blocks:
            h = through(apply, block, h, cond, skips.pop(), recompute=self.checkpoint_activations)
        return F.pixel_shuffle(self.out(h), self.patch_size)


def apply(layers: nn.ModuleList, h: Tensor, cond: Cond, skip: Tensor | None = None) -> Tensor:
    """One entry of the blocks: its layers one after the other, on h joined with `skip`."""
    if skip is not None:
        h = torch.cat([h, skip], dim=1)
    for layer in layers:
        h = layer(h, cond)
    return h
