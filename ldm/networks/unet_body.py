"""What U-Nets share: an encoder, a middle and a decoder that joins the encoder's maps, under the published names.

Noise level and vectors enter every residual block; tokens enter by the attentions; concats as extra input channels.
Which attentions there are, and where, is said by the `Blocks` that it is made of.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.errors import UserError
from ldm.networks.attention import Cond
from ldm.networks.context import Context
from ldm.networks.inputs import check_inputs
from ldm.networks.layers import sinusoid, through, zeroed
from ldm.networks.unet_blocks import Blocks, Upsample, apply


class UNetBody(nn.Module):
    """F(x, c_noise, conditions): x [B, in_channels, H, W] -> [B, out_channels, H, W], zero at initialisation.

    `vector_width` 0: no vector; one is brought to the width of the noise embedding, 4 channels, unless it has that and
    `project_vector` is false. `patch_size` p folds p x p positions into channels first, and unfolds them last.
    """

    def __init__(
        self,
        blocks: Blocks,
        in_channels: int,
        out_channels: int,
        tokens_width: int = 0,
        vector_width: int = 0,
        concat_channels: int = 0,
        patch_size: int = 1,
        checkpoint_activations: bool = False,
        project_vector: bool = True,
    ):
        super().__init__()
        channels, multipliers = blocks.channels, blocks.multipliers
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
            self.label_emb = nn.Sequential(*([blocks.embedding(vector_width)] if project_vector else []))
        self.input_blocks, skips = blocks.encoder((in_channels + concat_channels) * patch_size**2)
        width = skips[-1]
        self.middle_block = blocks.middle(width)
        self.aligned_layer = (f"middle_block.{len(self.middle_block) - 1}", width)  # whose output stands for the whole

        self.output_blocks = nn.ModuleList()
        for level, multiplier in reversed(list(enumerate(multipliers))):
            for place in range(blocks.num_blocks + 1):
                layers = blocks.block(width + skips.pop(), channels * multiplier, 2**level)
                width = channels * multiplier
                if level and place == blocks.num_blocks:
                    layers.append(blocks.res(width, width, up=True) if blocks.resblock_updown else Upsample(width))
                self.output_blocks.append(nn.ModuleList(layers))

        self.out = nn.Sequential(
            nn.GroupNorm(blocks.norm_groups, width),
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
            emb = emb + self.label_emb(vector)
        if concat is not None:
            x = torch.cat([x, concat.to(x.dtype)], dim=1)
        cond = Cond(emb, None if tokens is None else Context(tokens, tokens_mask, tokens_bias))

        h = self.input_blocks[0](F.pixel_unshuffle(x, self.patch_size))
        skips = [h]
        for block in self.input_blocks[1:]:
            h = through(apply, block, h, cond, recompute=self.checkpoint_activations)
            skips.append(h)
        h = through(apply, self.middle_block, h, cond, recompute=self.checkpoint_activations)
        for block in self.output_blocks:
            h = through(apply, block, h, cond, skips.pop(), recompute=self.checkpoint_activations)
        return F.pixel_shuffle(self.out(h), self.patch_size)
