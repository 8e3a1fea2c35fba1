"""The networks that are measured, at Stable Diffusion's size or tiny, what they are given, and clocks."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ldm.networks.unet import UNet


@dataclass(frozen=True)
class Size:
    """`table`: the arguments of the U-Net that two versions share; `latent` by image size, px; `seconds` of timing."""

    table: dict[str, Any]
    v2: dict[str, Any]
    v1: dict[str, Any]
    tokens: int
    latent: dict[int, int]
    batches: tuple[int, ...]  # tried one after the other until one fits
    seconds: float
    state_bytes: int  # of a checkpoint


SIZES = {
    "sd2": Size(
        {"channels": 320, "multipliers": (1, 2, 4, 4), "num_blocks": 2, "attention_factors": (1, 2, 4)},
        {"head_channels": 64, "tokens_width": 1024, "linear_projections": True},
        {"num_heads": 8, "tokens_width": 768},
        77, {256: 32, 512: 64}, (64, 32, 16, 8, 4), 6.0, 1 << 30,
    ),
    "tiny": Size(
        {"channels": 8, "multipliers": (1, 2), "num_blocks": 1, "attention_factors": (2,), "norm_groups": 4},
        {"head_channels": 8, "tokens_width": 8, "linear_projections": True},
        {"num_heads": 2, "tokens_width": 8},
        3, {256: 4, 512: 8}, (4, 2), 0.2, 1 << 20,
    ),
}  # fmt: skip


def unet(size: Size, version: str, device: torch.device, **more: Any) -> nn.Module:
    """The U-Net of Stable Diffusion 2 or 1.5 (``v2``, ``v1``), its zero weights random so that all is computed."""
    torch.manual_seed(0)
    with device:
        network = UNet(4, 4, **size.table, **getattr(size, version), **more)
        for parameter in network.parameters():
            if parameter.ndim > 1 and not parameter.any():
                nn.init.normal_(parameter, std=0.02)
    return network


def tokens(size: Size, version: str, batch_size: int, device: torch.device) -> Tensor:
    """As a text encoder gives them, [B, M, D]."""
    return torch.randn(batch_size, size.tokens, getattr(size, version)["tokens_width"], device=device)


def wait(device: torch.device) -> None:
    """Until the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def milliseconds(work: Callable[[], Any], device: torch.device, seconds: float, warm_up: int = 2) -> float:
    """Of one `work`, the mean over about so many seconds, after `warm_up` of them."""
    for _ in range(warm_up):
        work()
    wait(device)
    began = time.perf_counter()
    work()
    wait(device)
    count = max(1, int(seconds / max(time.perf_counter() - began, 1e-6)))
    began = time.perf_counter()
    for _ in range(count):
        work()
    wait(device)
    return 1e3 * (time.perf_counter() - began) / count
