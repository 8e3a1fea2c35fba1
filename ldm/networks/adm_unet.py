"""ADM's U-Net (arXiv 2105.05233) with cross-attention, as the base model of eDiff-I (arXiv 2211.01324, table 2).

A block of cross-attention follows each block of self-attention; both are blocks of their own, without a transformer's
feed-forward.
"""

from collections.abc import Sequence

from ldm.networks.unet_blocks import Blocks, self_then_cross
from ldm.networks.unet_body import UNetBody


class ADMUNet(UNetBody):
    """F(x, c_noise, conditions): x [B, in_channels, H, W] -> [B, out_channels, H, W], zero at initialisation.

    `channels * multipliers[l]` is the width of level l, `attention_factors` the downsampling factors at which it
    attends, as the middle does, with heads of `head_channels`. Without tokens (`tokens_width` 0) it is ADM's own. The
    vector is brought to the width of the noise embedding, 4 channels; `concat_channels` are appended to the input.
    `checkpoint_activations`: the backward pass computes each block again from its input.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        channels: int,
        multipliers: Sequence[int],
        num_blocks: int = 3,
        attention_factors: Sequence[int] = (),
        head_channels: int = 64,
        tokens_width: int = 0,
        vector_width: int = 0,
        concat_channels: int = 0,
        dropout: float = 0.0,
        scale_shift_norm: bool = True,
        resblock_updown: bool = True,
        norm_groups: int = 32,
        checkpoint_activations: bool = False,
    ):
        attentions = self_then_cross(attention_factors, attention_factors, head_channels, tokens_width, norm_groups)
        blocks = Blocks(
            channels, multipliers, num_blocks, attentions, dropout, scale_shift_norm, resblock_updown, norm_groups
        )
        super().__init__(
            blocks, in_channels, out_channels, tokens_width, vector_width, concat_channels,
            checkpoint_activations=checkpoint_activations,
        )  # fmt: skip
