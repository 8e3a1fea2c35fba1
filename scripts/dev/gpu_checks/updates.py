"""What a step does beside the network: the average's update, and AdamW in one kernel or in several."""

from pathlib import Path

import torch

from gpu_checks.models import SIZES, milliseconds, unet
from gpu_checks.table import Row
from ldm.training.ema import EMA
from ldm.training.optim import adamw


def measure(device: torch.device, size: str, out: Path) -> list[Row]:
    """Milliseconds of each, on the weights of Stable Diffusion 2's U-Net."""
    own = SIZES[size]
    network = unet(own, "v2", device)
    for parameter in network.parameters():
        parameter.grad = torch.full_like(parameter, 1e-6)
    average = EMA(network)
    rows = [Row("parameters", sum(p.numel() for p in network.parameters()) / 1e6, "M")]
    rows.append(Row("the average's update", milliseconds(average.update, device, own.seconds / 6), "ms"))
    for fused in (True, False):
        optimizer = adamw(lr=1e-6, fused=fused)(network)
        name = f"AdamW, {'one kernel' if fused else 'several'}"
        rows.append(Row(name, milliseconds(optimizer.step, device, own.seconds / 6), "ms"))
        del optimizer
    return rows
