"""The U-Net of latent diffusion models (arXiv 2112.10752; ablated by ADM, arXiv 2105.05233), with the published names.

Tokens enter by cross-attention, in transformers between the residual blocks. It does not know what the conditions
mean, nor in which parametrisation its output is read.
"""

from collections.abc import Callable, Sequence
from functools import partial

from torch import nn

from ldm.networks.attention import AttentionBlock, SpatialTransformer
from ldm.networks.unet_blocks import AtFactors, Blocks
from ldm.networks.unet_body import UNetBody


class UNet(UNetBody):
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
        attention: Callable[..., nn.Module] = partial(
            AttentionBlock, legacy_order=legacy_attention_order, norm_groups=norm_groups
        )
        if tokens_width:
            attention = partial(
                SpatialTransformer, tokens_width=tokens_width, depth=transformer_depth, norm_groups=norm_groups,
                linear_projections=linear_projections,
            )  # fmt: skip
        attentions = AtFactors(attention, attention_factors, num_heads, head_channels)
        blocks = Blocks(
            channels, multipliers, num_blocks, attentions, dropout, scale_shift_norm, resblock_updown, norm_groups
        )
        super().__init__(
            blocks, in_channels, out_channels, tokens_width, vector_width, concat_channels, patch_size,
            checkpoint_activations, project_vector,
        )  # fmt: skip
