"""Layers shared by the networks: attention and convolution kernels, noise embedding, grid <-> token views.

Kernels are chosen here, from device, dtype and size, and nowhere else.
"""

import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv2d_input
from torch.utils.checkpoint import checkpoint

from ldm.networks.bias import Bias
from ldm.networks.compiling import Compile, compile_network

BMM_LIMIT = 1024 * 1024  # query-key pairs per head up to which CPU bf16 training multiplies matrices itself
BLOCK, BLOCKED_FROM = 1024 * 1024, 64  # scores at a time, 2 MB, and keys from which CPU bf16 inference takes blocks
GEMM_LIMIT = 16  # positions per map up to which it forms the weight gradient of 3x3 convolutions by one product

Module = TypeVar("Module", bound=nn.Module)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, bias: Tensor | Bias | None = None) -> Tensor:
    """softmax((q k^T + bias max(q k^T)) / sqrt(d)) v for q [B, heads, N, d], k and v [B, heads, M, d].

    mask [B, 1, 1 or N, M], True = visible. bias [B, 1, N, M] is in units of the largest q.k of each sample, over its
    heads, queries and visible keys, so that it does not depend on the batch (eDiff-I, arXiv 2211.01324, section 4.3),
    or in those of a `Bias`. Without a bias nothing is computed for it.

    The backward of SDPA in bf16 on a CPU costs at least 6 ms a call, so training there uses plain products; without
    gradients products in blocks that stay in the cache take .7 to .8 of SDPA's time.
    """
    if bias is not None:
        mask = _added(q, k, mask, bias)
    low, learns = q.device.type == "cpu" and q.dtype == torch.bfloat16, torch.is_grad_enabled() and q.requires_grad
    if low and not learns and mask is None and k.shape[-2] >= BLOCKED_FROM and not torch.compiler.is_compiling():
        return _in_blocks(q, k, v)
    if not (low and learns) or q.shape[-2] * k.shape[-2] > BMM_LIMIT:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(-1) @ v


def _in_blocks(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention without gradients by matrix products, of at most `BLOCK` scores at a time, so in flat memory."""
    num_queries, num_keys = q.shape[-2], k.shape[-2]
    queries, keys, values = (part.flatten(0, 1) for part in (q, k, v))
    result, nothing = torch.empty_like(queries), queries.new_empty(())
    num_heads, rows = max(BLOCK // (num_queries * num_keys), 1), max(BLOCK // num_keys, 1)
    for place in range(0, len(queries), num_heads):
        across, own = keys[place : place + num_heads].transpose(1, 2), values[place : place + num_heads]
        for row in range(0, num_queries, rows):
            some = queries[place : place + num_heads, row : row + rows]
            scores = torch.baddbmm(nothing, some, across, beta=0, alpha=q.shape[-1] ** -0.5)
            result[place : place + num_heads, row : row + rows] = scores.softmax(-1) @ own
    return result.unflatten(0, q.shape[:2])


def _added(q: Tensor, k: Tensor, mask: Tensor | None, bias: Tensor | Bias) -> Tensor:
    """What mask and bias add to the scores q k^T / sqrt(d), like q: [B, 1, N, M], or for each head by a unit of its
    own; minus infinity where not visible.
    """
    values, unit = Bias.of(bias)
    products = q @ k.transpose(-2, -1)
    if mask is not None:
        products = products.masked_fill(~mask, -math.inf)
    added = values * (unit(products).float() * q.shape[-1] ** -0.5)
    return (added if mask is None else added.masked_fill(~mask, -math.inf)).to(q.dtype)


def conv3x3(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """conv(x) for a 3x3 convolution with stride 1 and padding 1; x [B, C, H, W].

    For maps of 4x4 or less oneDNN's bf16 weight gradient takes 3 to 8 times as long as one matrix product.
    """
    training = torch.is_grad_enabled() and conv.weight.requires_grad
    low = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    if x.device.type != "cpu" or not training or not low or x.shape[-2] * x.shape[-1] > GEMM_LIMIT:
        return conv(x)
    return _Conv3x3.apply(x.bfloat16(), conv.weight.bfloat16(), conv.bias.bfloat16())


def tuned(network: Module, device: torch.device, compile: Compile = False) -> Module:
    """The same network, its kernels laid out for `device` and, if asked, compiled (networks/compiling.py); the state
    dict keeps its names.

    Channels last is what GPUs' kernels and oneDNN's convolutions like. Not for training on a CPU: GroupNorm's backward
    takes 3 times as long there in fp32, 5 in bf16, and convolutions gain nothing.
    """
    trains = any(parameter.requires_grad for parameter in network.parameters())
    if device.type != "cpu" or not trains:
        network.to(memory_format=torch.channels_last)
    compile_network(network, compile, device)
    return network


class _Conv3x3(torch.autograd.Function):
    """torch's convolution; the gradient of its weight is dy^T [O, BHW] times the patches of x [BHW, 9C]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, bias, padding=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        (num_samples, channels, height, width), out_channels = x.shape, weight.shape[0]
        dx = None
        if ctx.needs_input_grad[0]:
            dx = conv2d_input(x.shape, weight, dy, padding=1)
        padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1)).contiguous()  # [B, H + 2, W + 2, C]
        b, h, w, c = padded.stride()
        patches = padded.as_strided((num_samples, height, width, 3, 3 * channels), (b, h, w, h, c))
        rows = dy.permute(0, 2, 3, 1).reshape(-1, out_channels)  # [BHW, O]
        dweight = rows.t() @ patches.reshape(-1, 9 * channels)
        return dx, dweight.view(out_channels, 3, 3, channels).permute(0, 3, 1, 2), rows.sum(0)


def through(layer: Callable[..., Tensor], *arguments: Any, recompute: bool) -> Tensor:
    """layer(*arguments); with `recompute` the backward pass keeps only the arguments and computes it again."""
    if recompute and torch.is_grad_enabled():
        return checkpoint(layer, *arguments, use_reentrant=False)
    return layer(*arguments)


def sinusoid(c_noise: Tensor, width: int) -> Tensor:
    """Embed c_noise [B] as [B, width]: cos then sin of c_noise * exp(-ln(10^4) i / (width / 2))."""
    half = width // 2
    frequencies = torch.exp(torch.arange(half, dtype=torch.float32, device=c_noise.device) * (-math.log(1e4) / half))
    angles = c_noise.float()[:, None] * frequencies
    return F.pad(torch.cat([angles.cos(), angles.sin()], dim=-1), (0, width % 2))


def to_tokens(x: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, H*W, C]."""
    return x.flatten(2).transpose(1, 2)


def to_grid(tokens: Tensor, like: Tensor) -> Tensor:
    """[B, H*W, C] -> [B, C, H, W] with the height and width of `like`."""
    return tokens.transpose(1, 2).unflatten(2, like.shape[2:])


def pointwise(tokens: Tensor, layer: nn.Module) -> Tensor:
    """Apply a 1x1 convolution, or a layer of tokens, to tokens [B, N, C]: a matrix product without change of layout."""
    if isinstance(layer, nn.Conv1d | nn.Conv2d):
        return F.linear(tokens, layer.weight.flatten(1), layer.bias)
    return layer(tokens)


def split_heads(tokens: Tensor, num_heads: int) -> Tensor:
    """[B, N, heads * d] -> [B, heads, N, d]."""
    return tokens.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """[B, heads, N, d] -> [B, N, heads * d]."""
    return x.transpose(1, 2).flatten(2)


def zeroed(module: Module) -> Module:
    """The same module with all parameters zero, for outputs that shall add nothing at the start."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class Frozen:
    """A module that is used but never trained or saved.

    Held outside nn.Module's registry, it is absent from parameters(), state_dict() and train(); `on` brings it to the
    device of its input.
    """

    def __init__(self, module: nn.Module):
        self.module = module.eval().requires_grad_(False)

    def on(self, device: torch.device) -> nn.Module:
        """The module, on this device."""
        return self.module.to(device)
