"""The diffusion transformer DiT (arXiv 2212.09748) with cross-attention to tokens in some of its blocks."""

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
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def positions(height, width, channels, device):
    """Sines and cosines of each column's number, then of each row's: [height * width, channels]."""
    frequencies = torch.exp(torch.arange(channels // 4, device=device) * (-math.log(1e4) / (channels // 4)))
    columns = torch.arange(width, device=device)[:, None] * frequencies
    rows = torch.arange(height, device=device)[:, None] * frequencies
    columns = torch.cat([columns.sin(), columns.cos()], dim=1).expand(height, width, -1)
    rows = torch.cat([rows.sin(), rows.cos()], dim=1)[:, None].expand(height, width, -1)
    return torch.cat([columns, rows], dim=-1).flatten(0, 1)


def attend(q, k, v, num_heads, mask=None):
    """Attention of q [B, N, width] on k and v [B, M, width]; mask [B, M] (True = real)."""
    q, k, v = (x.unflatten(-1, (num_heads, -1)).transpose(1, 2) for x in (q, k, v))
    mask = None if mask is None else mask[:, None, None]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


def modulate(x, shift, scale):
    return x * (1 + scale[:, None]) + shift[:, None]


class SelfAttention(nn.Module):
    def __init__(self, width, num_heads):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x):
        return self.proj(attend(*self.qkv(x).chunk(3, dim=-1), self.num_heads))


class CrossAttention(nn.Module):
    def __init__(self, width, tokens_width, num_heads):
        super().__init__()
        self.num_heads = num_heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(tokens_width, width, bias=False)
        self.to_v = nn.Linear(tokens_width, width, bias=False)
        self.to_out = nn.Sequential(nn.Linear(width, width))

    def forward(self, x, tokens, mask):
        return self.to_out(attend(self.to_q(x), self.to_k(tokens), self.to_v(tokens), self.num_heads, mask))


class Block(nn.Module):
    """Self-attention, cross-attention if `tokens_width`, feed-forward; shifted, scaled and gated by `cond`."""

    def __init__(self, width, num_heads, mlp_ratio, tokens_width):
        super().__init__()
        hidden = int(mlp_ratio * width)
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attn = SelfAttention(width, num_heads)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU("tanh"), nn.Identity(), nn.Linear(hidden, width))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        if tokens_width:
            self.norm_cross = nn.LayerNorm(width, eps=1e-6)
            self.cross = CrossAttention(width, tokens_width, num_heads)
        self.attends = bool(tokens_width)

    def forward(self, x, cond, tokens, mask):
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(cond).chunk(6, dim=1)
        x = x + gate1[:, None] * self.attn(modulate(self.norm1(x), shift1, scale1))
        if self.attends:
            x = x + self.cross(self.norm_cross(x), tokens, mask)
        return x + gate2[:, None] * self.mlp(modulate(self.norm2(x), shift2, scale2))


def embedding(in_width, width):
    return nn.Sequential(nn.Linear(in_width, width), nn.SiLU(), nn.Linear(width, width))


class LatentDiT(ModelMixin, ConfigMixin):
    """sample [B, in_channels, H, W] at a timestep [B] or a number -> [B, out_channels, H, W].

    encoder_hidden_states [B, M, tokens_width] with encoder_attention_mask [B, M] (True = real), class_labels
    [B, vector_width]: all that the model was trained with.
    """

    @register_to_config
    def __init__(
        self, in_channels, out_channels, patch_size, width, depth, num_heads, mlp_ratio=4.0, tokens_width=0,
        vector_width=0, cross_attention_every=1, noise_width=256, sample_size=None,
    ):  # fmt: skip
        super().__init__()
        self.x_embedder = nn.Linear(in_channels * patch_size**2, width)
        self.t_embedder = embedding(noise_width, width)
        self.y_embedder = embedding(vector_width, width) if vector_width else None
        self.blocks = nn.ModuleList(
            Block(width, num_heads, mlp_ratio, 0 if place % cross_attention_every else tokens_width)
            for place in range(depth)
        )
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
        self.out = nn.Linear(width, out_channels * patch_size**2)

    def forward(
        self, sample, timestep, encoder_hidden_states=None, encoder_attention_mask=None, class_labels=None,
        return_dict=True,
    ):  # fmt: skip
        timestep = torch.as_tensor(timestep, device=sample.device).expand(len(sample))
        cond = self.t_embedder(sinusoid(timestep, self.config.noise_width).to(sample.dtype))  # [B, width]
        if class_labels is not None:
            cond = cond + self.y_embedder(class_labels)
        folded = F.pixel_unshuffle(sample, self.config.patch_size)  # [B, C p^2, H / p, W / p]
        size = folded.shape[2:]
        h = self.x_embedder(folded.flatten(2).transpose(1, 2))  # [B, N, width]
        h = h + positions(*size, h.shape[-1], h.device).to(h.dtype)
        for block in self.blocks:
            h = block(h, cond, encoder_hidden_states, encoder_attention_mask)
        shift, scale = self.adaLN_modulation(cond).chunk(2, dim=1)
        h = self.out(modulate(self.norm(h), shift, scale))
        output = F.pixel_shuffle(h.transpose(1, 2).unflatten(2, size), self.config.patch_size)
        return UNet2DConditionOutput(sample=output) if return_dict else (output,)
