"""The U-Net that ours and diffusers are compared with: 28.5 M parameters, latents 4x32x32, tokens 16x384.

Both have the same table and the same weights; `same_output` holds them to it.
"""

from dataclasses import dataclass

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ldm.networks.unet import UNet

WIDTH, MULTIPLIERS, NUM_BLOCKS, FACTORS, HEAD_WIDTH, TOKENS_WIDTH, NUM_TOKENS = (
    64,
    (1, 2, 3, 4),
    2,
    (1, 2, 4),
    32,
    384,
    16,
)
# Last names of a residual block's layers: published -> diffusers'.
RESIDUAL = {
    "in_layers.0": "norm1", "in_layers.2": "conv1", "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2", "out_layers.3": "conv2", "skip_connection": "conv_shortcut",
}  # fmt: skip
ENDS = {
    "time_embed.0.": "time_embedding.linear_1.", "time_embed.2.": "time_embedding.linear_2.",
    "input_blocks.0.0.": "conv_in.", "out.0.": "conv_norm_out.", "out.2.": "conv_out.",
}  # fmt: skip


@dataclass(frozen=True)
class Inputs:
    """x [B, 4, S, S], c_noise [B], tokens [B, 16, 384] and a target like x."""

    x: Tensor
    c_noise: Tensor
    tokens: Tensor
    target: Tensor


def inputs(batch_size: int, size: int) -> Inputs:
    """Random ones, the same every time."""
    generator = torch.Generator().manual_seed(0)
    x, target = (torch.randn(batch_size, 4, size, size, generator=generator) for _ in range(2))
    tokens = torch.randn(batch_size, NUM_TOKENS, TOKENS_WIDTH, generator=generator)
    return Inputs(x, 1000 * torch.rand(batch_size, generator=generator), tokens, target)


def ours() -> UNet:
    """Ours; what is zero at initialisation is random here, so that outputs can be compared."""
    torch.manual_seed(0)
    network = UNet(4, 4, WIDTH, MULTIPLIERS, NUM_BLOCKS, FACTORS, head_channels=HEAD_WIDTH, tokens_width=TOKENS_WIDTH)
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    return network


def theirs(state: dict[str, Tensor] | None = None) -> UNet2DConditionModel:
    """diffusers', with the weights of ours if given; its attention is SDPA."""
    crossed = [2**level in FACTORS for level in range(len(MULTIPLIERS))]
    widths = [WIDTH * multiplier for multiplier in MULTIPLIERS]
    network = UNet2DConditionModel(
        in_channels=4, out_channels=4, block_out_channels=widths, layers_per_block=NUM_BLOCKS,
        down_block_types=["CrossAttnDownBlock2D" if cross else "DownBlock2D" for cross in crossed],
        up_block_types=["CrossAttnUpBlock2D" if cross else "UpBlock2D" for cross in reversed(crossed)],
        attention_head_dim=[width // HEAD_WIDTH for width in widths],  # diffusers means the number of heads
        cross_attention_dim=TOKENS_WIDTH,
    )  # fmt: skip
    if state is not None:
        network.load_state_dict({diffusers_name(name): value for name, value in state.items()})
    return network


def diffusers_name(name: str) -> str:
    """The name under which UNet2DConditionModel has the published parameter `name`."""
    for ours_, theirs_ in ENDS.items():
        if name.startswith(ours_):
            return theirs_ + name.removeprefix(ours_)
    part, *rest = name.split(".")
    if part == "middle_block":
        place, inner = int(rest[0]), rest[1:]
        block, place, attends = "mid_block", place // 2, place == 1
    else:
        number, attends, inner = int(rest[0]) - (part == "input_blocks"), rest[1] == "1", rest[2:]
        level, place = divmod(number, NUM_BLOCKS + 1)
        block = f"{'down' if part == 'input_blocks' else 'up'}_blocks.{level}"
        if inner[0] == "op":
            return f"{block}.downsamplers.0.conv.{inner[-1]}"
        if inner[0] == "conv":
            return f"{block}.upsamplers.0.conv.{inner[-1]}"
    if attends:
        return ".".join([block, "attentions", str(place), *inner])
    return f"{block}.resnets.{place}.{RESIDUAL['.'.join(inner[:-1])]}.{inner[-1]}"


def run_ours(network: UNet, given: Inputs) -> Tensor:
    """One evaluation of ours."""
    return network(given.x, given.c_noise, tokens=given.tokens)


def run_theirs(network: UNet2DConditionModel, given: Inputs) -> Tensor:
    """One evaluation of diffusers'."""
    return network(given.x, given.c_noise, given.tokens).sample


@torch.no_grad()
def same_output(one: UNet, other: UNet2DConditionModel, given: Inputs) -> None:
    """Raises AssertionError unless both networks are the same function."""
    torch.testing.assert_close(run_ours(one, given), run_theirs(other, given), rtol=1e-3, atol=1e-4)


def training_flop(size: int) -> int:
    """FLOP of one sample, forward and backward, attention counted as its two products."""
    network, given = ours(), inputs(1, size)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        run_ours(network, given).sum().backward()
    return counter.get_total_flops()
