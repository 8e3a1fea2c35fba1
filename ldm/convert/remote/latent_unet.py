"""The U-Net of latent diffusion models (arXiv 2112.10752), with what no U-Net of diffusers has.

That is patches, vectors beside plain self-attention, classes that are added as they are, and levels that attend to
tokens and are halved or doubled inside a residual block.
"""

import math

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import nn


def sinusoid(timestep, width):
    """Timesteps [B] -> [B, width]: cosines, then sines."""
    exponents = torch.arange(width // 2, dtype=torch.float32, device=timestep.device) * (-math.log(1e4) / (width // 2))
    angles = timestep.float()[:, None] * exponents.exp()
    return F.pad(torch.cat([angles.cos(), angles.sin()], dim=-1), (0, width % 2))


def double(x):
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def halve(x):
    return F.avg_pool2d(x, 2)


class Downsample(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x, emb, tokens, mask):
        return self.op(x)


class Upsample(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x, emb, tokens, mask):
        return self.conv(double(x))


class ResBlock(nn.Module):
    """Two normalised convolutions beside a skip; the embedding is added, or scales and shifts, between them."""

    def __init__(self, channels, out_channels, emb_width, norm_groups, scale_shift_norm, resample=None):
        super().__init__()
        self.resample = resample or nn.Identity()
        self.scale_shift_norm = scale_shift_norm
        self.in_layers = nn.Sequential(
            nn.GroupNorm(norm_groups, channels), nn.SiLU(), nn.Conv2d(channels, out_channels, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(
            nn.SiLU(), nn.Linear(emb_width, 2 * out_channels if scale_shift_norm else out_channels)
        )
        self.out_layers = nn.Sequential(
            nn.GroupNorm(norm_groups, out_channels), nn.SiLU(), nn.Identity(),
            nn.Conv2d(out_channels, out_channels, 3, padding=1),
        )  # fmt: skip
        self.skip_connection = nn.Identity() if channels == out_channels else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x, emb, tokens, mask):
        norm, act, conv = self.in_layers
        h = conv(self.resample(act(norm(x))))
        emb = self.emb_layers(emb)[:, :, None, None]
        norm, *rest = self.out_layers
        if self.scale_shift_norm:
            scale, shift = emb.chunk(2, dim=1)
            h = norm(h) * (1 + scale) + shift
        else:
            h = norm(h + emb)
        for layer in rest:
            h = layer(h)
        return self.skip_connection(self.resample(x)) + h


def attend(q, k, v, mask=None):
    """Of heads [B, heads, N, d] -> [B, N, heads * d]; mask [B, M] (True = real)."""
    mask = None if mask is None else mask[:, None, None]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


class AttentionBlock(nn.Module):
    """Self-attention over all positions; rows of qkv are (head, q|k|v, d), or (q|k|v, head, d)."""

    def __init__(self, channels, num_heads, norm_groups, legacy_order):
        super().__init__()
        self.num_heads = num_heads
        self.legacy_order = legacy_order
        self.norm = nn.GroupNorm(norm_groups, channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x, emb, tokens, mask):
        qkv = self.qkv(self.norm(x).flatten(2)).transpose(1, 2)  # [B, N, 3C]
        by_head, by_kind = ((self.num_heads, 3, -1), (3, 0, 2, 1, 4)), ((3, self.num_heads, -1), (2, 0, 3, 1, 4))
        shape, order = by_head if self.legacy_order else by_kind
        qkv = qkv.unflatten(-1, shape).permute(order)
        return x + self.proj_out(attend(*qkv).transpose(1, 2)).unflatten(2, x.shape[2:])


class Attention(nn.Module):
    def __init__(self, width, context_width, num_heads):
        super().__init__()
        self.num_heads = num_heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(context_width, width, bias=False)
        self.to_v = nn.Linear(context_width, width, bias=False)
        self.to_out = nn.Sequential(nn.Linear(width, width))

    def forward(self, x, context, mask=None):
        heads = (self.to_q(x), self.to_k(context), self.to_v(context))
        return self.to_out(attend(*(h.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for h in heads), mask))


class FeedForward(nn.Module):
    def __init__(self, width):
        super().__init__()
        gate = nn.ModuleDict({"proj": nn.Linear(width, 8 * width)})  # GEGLU's, by its name
        self.net = nn.ModuleList([gate, nn.Identity(), nn.Linear(4 * width, width)])

    def forward(self, x):
        value, gate = self.net[0]["proj"](x).chunk(2, dim=-1)
        return self.net[2](value * F.gelu(gate))


class TransformerBlock(nn.Module):
    def __init__(self, width, tokens_width, num_heads):
        super().__init__()
        self.attn1 = Attention(width, width, num_heads)
        self.ff = FeedForward(width)
        self.attn2 = Attention(width, tokens_width, num_heads)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))

    def forward(self, x, tokens, mask):
        normed = self.norm1(x)
        x = x + self.attn1(normed, normed)
        x = x + self.attn2(self.norm2(x), tokens, mask)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """Transformer blocks over the positions, each attending to the tokens too."""

    def __init__(self, channels, num_heads, tokens_width, depth, norm_groups, linear_projections):
        super().__init__()
        self.norm = nn.GroupNorm(norm_groups, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, channels) if linear_projections else nn.Conv2d(channels, channels, 1)
        blocks = [TransformerBlock(channels, tokens_width, num_heads) for _ in range(depth)]
        self.transformer_blocks = nn.ModuleList(blocks)
        self.proj_out = nn.Linear(channels, channels) if linear_projections else nn.Conv2d(channels, channels, 1)

    def forward(self, x, emb, tokens, mask):
        h = self.norm(x).flatten(2).transpose(1, 2)  # [B, N, C]
        h = F.linear(h, self.proj_in.weight.flatten(1), self.proj_in.bias)
        for block in self.transformer_blocks:
            h = block(h, tokens, mask)
        h = F.linear(h, self.proj_out.weight.flatten(1), self.proj_out.bias)
        return x + h.transpose(1, 2).unflatten(2, x.shape[2:])


class LatentUNet(ModelMixin, ConfigMixin):
    """sample [B, in_channels, H, W] at a timestep [B] or a number -> [B, out_channels, H, W].

    encoder_hidden_states [B, M, tokens_width] with encoder_attention_mask [B, M] (True = real), class_labels
    [B, vector_width]: all that the model was trained with.
    """

    @register_to_config
    def __init__(
        self, in_channels, out_channels, channels, multipliers, num_blocks=2, attention_factors=(), num_heads=None,
        head_channels=None, tokens_width=0, vector_width=0, transformer_depth=1, linear_projections=False,
        scale_shift_norm=False, resblock_updown=False, legacy_attention_order=True, norm_groups=32, patch_size=1,
        project_vector=True, sample_size=None,
    ):  # fmt: skip
        super().__init__()
        emb_width = 4 * channels

        def embedding(width):
            return nn.Sequential(nn.Linear(width, emb_width), nn.SiLU(), nn.Linear(emb_width, emb_width))

        def res(width, out_width, **resample):
            return ResBlock(width, out_width, emb_width, norm_groups, scale_shift_norm, **resample)

        def attention(width):
            heads = num_heads or width // head_channels
            if not tokens_width:
                return AttentionBlock(width, heads, norm_groups, legacy_attention_order)
            return SpatialTransformer(width, heads, tokens_width, transformer_depth, norm_groups, linear_projections)

        def block(width, out_width, factor):
            return [res(width, out_width), *([attention(out_width)] if factor in attention_factors else [])]

        self.time_embed = embedding(channels)
        if vector_width:
            self.label_emb = nn.Sequential(*([embedding(vector_width)] if project_vector else []))
        width, widths = channels, [channels]
        first = nn.Conv2d(in_channels * patch_size**2, channels, 3, padding=1)
        self.input_blocks = nn.ModuleList([nn.Sequential(first)])
        for level, multiplier in enumerate(multipliers):
            for _ in range(num_blocks):
                self.input_blocks.append(nn.ModuleList(block(width, channels * multiplier, 2**level)))
                width = channels * multiplier
                widths.append(width)
            if level != len(multipliers) - 1:
                down = res(width, width, resample=halve) if resblock_updown else Downsample(width)
                self.input_blocks.append(nn.ModuleList([down]))
                widths.append(width)
        self.middle_block = nn.ModuleList([res(width, width), attention(width), res(width, width)])
        self.output_blocks = nn.ModuleList()
        for level, multiplier in reversed(list(enumerate(multipliers))):
            for place in range(num_blocks + 1):
                layers = block(width + widths.pop(), channels * multiplier, 2**level)
                width = channels * multiplier
                if level and place == num_blocks:
                    layers.append(res(width, width, resample=double) if resblock_updown else Upsample(width))
                self.output_blocks.append(nn.ModuleList(layers))
        last = nn.Conv2d(width, out_channels * patch_size**2, 3, padding=1)
        self.out = nn.Sequential(nn.GroupNorm(norm_groups, width), nn.SiLU(), last)

    def forward(
        self, sample, timestep, encoder_hidden_states=None, encoder_attention_mask=None, class_labels=None,
        return_dict=True,
    ):  # fmt: skip
        timestep = torch.as_tensor(timestep, device=sample.device).expand(len(sample))
        emb = self.time_embed(sinusoid(timestep, self.config.channels).to(sample.dtype))
        if class_labels is not None:
            emb = emb + self.label_emb(class_labels)
        cond = (emb, encoder_hidden_states, encoder_attention_mask)

        def apply(layers, h):
            for layer in layers:
                h = layer(h, *cond)
            return h

        h = self.input_blocks[0](F.pixel_unshuffle(sample, self.config.patch_size))
        skips = [h]
        for layers in self.input_blocks[1:]:
            h = apply(layers, h)
            skips.append(h)
        h = apply(self.middle_block, h)
        for layers in self.output_blocks:
            h = apply(layers, torch.cat([h, skips.pop()], dim=1))
        output = F.pixel_shuffle(self.out(h), self.config.patch_size)
        return UNet2DConditionOutput(sample=output) if return_dict else (output,)
