"""The AdamW step over the U-Net's 28.5 M weights, against torch's loop over parameters and its foreach kernels."""

import torch

from benchmarks import unet
from benchmarks.measure import compare
from ldm.training.optim import adamw

GOAL = 3.0  # against the loop


def run(options: dict) -> None:
    """Print the suite's table."""
    steps = {"ours": adamw(lr=1e-5)}
    for who, settings in {"torch foreach": {"foreach": True}, "torch loop": {"foreach": False}}.items():
        steps[who] = lambda network, settings=settings: torch.optim.AdamW(network.parameters(), lr=1e-5, **settings)
    contestants = {}
    for who, make in steps.items():
        network = unet.ours()
        for parameter in network.parameters():
            parameter.grad = 0.01 * torch.randn_like(parameter)
        contestants[who] = make(network).step
    print(
        f"torch {torch.__version__}, one thread, {sum(p.numel() for p in network.parameters()) / 1e6:.1f} M parameters"
    )
    compare("AdamW step", contestants, options["repeats"])
    compare("AdamW step", {who: contestants[who] for who in ("ours", "torch loop")}, options["repeats"], GOAL)
