"""A second first stage, for parity only: the published forward, written from its description on a bare state dict."""

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]
NORM_GROUPS = 4


def _conv(state: State, name: str, x: Tensor, padding: int = 0, stride: int = 1) -> Tensor:
    return F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], stride, padding)


def _norm(state: State, name: str, x: Tensor) -> Tensor:
    grouped = x.reshape(len(x), NORM_GROUPS, -1)
    mean, variance = grouped.mean(2, keepdim=True), grouped.var(2, unbiased=False, keepdim=True)
    normed = ((grouped - mean) / (variance + 1e-6).sqrt()).reshape(x.shape)
    return normed * state[f"{name}.weight"][:, None, None] + state[f"{name}.bias"][:, None, None]


def _swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def _residual(state: State, name: str, x: Tensor) -> Tensor:
    h = _conv(state, f"{name}.conv1", _swish(_norm(state, f"{name}.norm1", x)), padding=1)
    h = _conv(state, f"{name}.conv2", _swish(_norm(state, f"{name}.norm2", h)), padding=1)
    return h + (_conv(state, f"{name}.nin_shortcut", x) if f"{name}.nin_shortcut.weight" in state else x)


def _attention(state: State, name: str, x: Tensor) -> Tensor:
    if f"{name}.q.weight" not in state:
        return x
    batch, channels, height, width = x.shape
    h = _norm(state, f"{name}.norm", x)
    q, k, v = (_conv(state, f"{name}.{part}", h).reshape(batch, channels, -1) for part in "qkv")
    weights = torch.einsum("bci,bcj->bij", q, k).mul(channels**-0.5).softmax(-1)
    out = torch.einsum("bij,bcj->bci", weights, v).reshape(batch, channels, height, width)
    return x + _conv(state, f"{name}.proj_out", out)


def _blocks(state: State, name: str, x: Tensor) -> Tensor:
    number = 0
    while f"{name}.block.{number}.conv1.weight" in state:
        x = _residual(state, f"{name}.block.{number}", x)
        x = _attention(state, f"{name}.attn.{number}", x)
        number += 1
    return x


def _middle(state: State, name: str, x: Tensor) -> Tensor:
    x = _attention(state, f"{name}.attn_1", _residual(state, f"{name}.block_1", x))
    return _residual(state, f"{name}.block_2", x)


def reference_encode(state: State, image: Tensor) -> Tensor:
    """What the encoder and quant_conv of a published state (4 norm groups) make of image [B, 3, H, W]."""
    h = _conv(state, "encoder.conv_in", image, padding=1)
    level = 0
    while f"encoder.down.{level}.block.0.conv1.weight" in state:
        h = _blocks(state, f"encoder.down.{level}", h)
        if f"encoder.down.{level}.downsample.conv.weight" in state:
            bottom_right = torch.zeros(*h.shape[:2], h.shape[2] + 1, h.shape[3] + 1)
            bottom_right[:, :, :-1, :-1] = h
            h = _conv(state, f"encoder.down.{level}.downsample.conv", bottom_right, stride=2)
        level += 1
    h = _swish(_norm(state, "encoder.norm_out", _middle(state, "encoder.mid", h)))
    return _conv(state, "quant_conv", _conv(state, "encoder.conv_out", h, padding=1))


def reference_decode(state: State, z: Tensor) -> Tensor:
    """The image of a latent z [B, C, h, w]; with a codebook, of the codes nearest to it."""
    codes = state.get("quantize.embedding.weight")
    if codes is not None:
        distances = (z.movedim(1, -1)[..., None, :] - codes).square().sum(-1)
        z = codes[distances.argmin(-1)].movedim(-1, 1)
    h = _conv(state, "decoder.conv_in", _conv(state, "post_quant_conv", z), padding=1)
    h = _middle(state, "decoder.mid", h)
    num_levels = 0
    while f"decoder.up.{num_levels}.block.0.conv1.weight" in state:
        num_levels += 1
    for level in reversed(range(num_levels)):
        h = _blocks(state, f"decoder.up.{level}", h)
        if f"decoder.up.{level}.upsample.conv.weight" in state:
            doubled = h.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
            h = _conv(state, f"decoder.up.{level}.upsample.conv", doubled, padding=1)
    return _conv(state, "decoder.conv_out", _swish(_norm(state, "decoder.norm_out", h)), padding=1)
