"""The Efficient U-Net of Imagen (arXiv 2205.11487, appendix B.1), as eDiff-I's super-resolution has it (tables 3, 4).

Few residual blocks where maps are large and many where they are small; a level is reduced before its blocks and
enlarged after them; skips are scaled by 1 / sqrt(2). There is one skip for each level, joined along channels, one group
of attentions after the blocks of a level, and no middle: the lowest level is it. Without self-attention its cost is
linear in pixels, so that it is trained on crops and applied to whole images.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.errors import UserError
from ldm.networks.attention import Cond
from ldm.networks.context import Context
from ldm.networks.inputs import check_inputs
from ldm.networks.layers import conv3x3, sinusoid, through, zeroed
from ldm.networks.unet_blocks import Blocks, apply, self_then_cross


class Reduce(nn.Module):
    """Halve height and width by a 3x3 convolution of stride 2, from `channels` to `out_channels`."""

    def __init__(self, channels: int, out_channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, out_channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor, cond: Cond) -> Tensor:
        return self.conv(x)


class Enlarge(nn.Module):
    """Double height and width: a 3x3 convolution from `channels` to `out_channels`, then nearest neighbour."""

    def __init__(self, channels: int, out_channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor, cond: Cond) -> Tensor:
        return F.interpolate(conv3x3(self.conv, x), scale_factor=2.0, mode="nearest")


def _level(blocks: Blocks, width: int, out_width: int, count: int, factor: int) -> list[nn.Module]:
    """`count` residual blocks from `width` to `out_width`, and the attentions of this downsampling factor."""
    widths = [width, *[out_width] * (count - 1)]
    return [*[blocks.res(each, out_width) for each in widths], *blocks.attentions(out_width, factor)]


class EfficientUNet(nn.Module):
    """F(x, c_noise, conditions): x [B, in_channels, H, W] -> [B, out_channels, H, W], zero at initialisation.

    Level l is `channels * multipliers[l]` wide and has `num_blocks * block_multipliers[l]` residual blocks on the way
    down and as many on the way up. `self_attention_factors` and `cross_attention_factors` are the downsampling factors
    at which it attends to itself and, given tokens, to these, with heads of `head_channels`; a UserError names one that
    no level has. The vector is brought to
    the width of the noise embedding, 4 channels; `concat_channels` are appended to the input.
    `checkpoint_activations`: the backward pass computes each level again from its input. The argument list is the
    paper's table.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        channels: int,
        multipliers: Sequence[int],
        block_multipliers: Sequence[int],
        num_blocks: int = 2,
        self_attention_factors: Sequence[int] = (),
        cross_attention_factors: Sequence[int] = (),
        head_channels: int = 64,
        tokens_width: int = 0,
        vector_width: int = 0,
        concat_channels: int = 0,
        dropout: float = 0.0,
        scale_shift_norm: bool = True,
        norm_groups: int = 32,
        checkpoint_activations: bool = False,
    ):
        super().__init__()
        if len(block_multipliers) != len(multipliers):
            raise UserError(
                f"network.block_multipliers: has {len(block_multipliers)} levels, and network.multipliers has "
                f"{len(multipliers)}; give one for each level"
            )
        factors = [2**level for level in range(len(multipliers))]
        for key, given in {"self": self_attention_factors, "cross": cross_attention_factors}.items():
            if unknown := [factor for factor in given if factor not in factors]:
                raise UserError(
                    f"network.{key}_attention_factors={list(given)}: no level of this network has the factor "
                    f"{unknown[0]}; its levels have {factors}"
                )
        if tokens_width and not cross_attention_factors:
            raise UserError("network.cross_attention_factors=[]: nothing would read the tokens; name levels that do")
        attentions = self_then_cross(
            self_attention_factors, cross_attention_factors, head_channels, tokens_width, norm_groups
        )
        blocks = Blocks(
            channels, multipliers, num_blocks, attentions, dropout, scale_shift_norm, norm_groups=norm_groups
        )
        self.channels = channels
        self.in_channels = in_channels
        self.concat_channels = concat_channels
        self.tokens_width = tokens_width
        self.vector_width = vector_width
        self.checkpoint_activations = checkpoint_activations
        self.factor = 2 ** (len(multipliers) - 1)  # height and width must be multiples of it

        self.time_embed = blocks.embedding(channels)
        if vector_width:
            self.vector_embed = blocks.embedding(vector_width)
        self.input_conv = nn.Conv2d(in_channels + concat_channels, channels, 3, padding=1)
        widths = [channels * multiplier for multiplier in multipliers]
        self.down_levels, self.up_levels = nn.ModuleList(), nn.ModuleList()
        for level, (width, factor) in enumerate(zip(widths, factors, strict=True)):
            reduce = [Reduce(widths[level - 1], width)] if level else []
            own = _level(blocks, width if level else channels, width, num_blocks * block_multipliers[level], factor)
            self.down_levels.append(nn.ModuleList([*reduce, *own]))
        lowest = len(widths) - 1
        self.aligned_layer = (f"down_levels.{lowest}.{len(self.down_levels[lowest]) - 1}", widths[lowest])
        for level, width in reversed(list(enumerate(widths))):
            joined = width if level == len(widths) - 1 else 2 * width  # with the skip, which the lowest level has not
            own = _level(blocks, joined, width, num_blocks * block_multipliers[level], factors[level])
            enlarge = [Enlarge(width, widths[level - 1])] if level else []
            self.up_levels.append(nn.ModuleList([*own, *enlarge]))
        self.out = nn.Sequential(
            nn.GroupNorm(norm_groups, widths[0]),
            nn.SiLU(),
            zeroed(nn.Conv2d(widths[0], out_channels, 3, padding=1)),
        )

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
        emb = self.time_embed(sinusoid(c_noise, self.channels))  # [B, 4 channels]
        if vector is not None:
            emb = emb + self.vector_embed(vector)
        if concat is not None:
            x = torch.cat([x, concat.to(x.dtype)], dim=1)
        cond = Cond(emb, None if tokens is None else Context(tokens, tokens_mask, tokens_bias))

        h = self.input_conv(x)
        skips: list[Tensor | None] = []
        for level in self.down_levels:
            h = through(apply, level, h, cond, recompute=self.checkpoint_activations)
            skips.append(h / math.sqrt(2))
        skips[-1] = None  # the lowest level goes on with its own map
        for level in self.up_levels:
            h = through(apply, level, h, cond, skips.pop(), recompute=self.checkpoint_activations)
        return self.out(h)
