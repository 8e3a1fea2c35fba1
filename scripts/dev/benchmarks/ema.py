"""The update of a moving average of the U-Net's 28.5 M weights, against diffusers' EMAModel."""

import torch
from diffusers.training_utils import EMAModel

from benchmarks import unet
from benchmarks.measure import compare
from ldm.training.ema import EMA

GOAL = 2.5


def run(options: dict) -> None:
    """Print the suite's table."""
    network = unet.ours()
    average = EMA(network, 0.9999)
    peers = {
        f"diffusers foreach={foreach}": EMAModel(network.parameters(), foreach=foreach) for foreach in (False, True)
    }
    contestants = {"ours": average.update}
    contestants |= {who: lambda peer=peer: peer.step(network.parameters()) for who, peer in peers.items()}
    print(
        f"torch {torch.__version__}, one thread, {sum(p.numel() for p in network.parameters()) / 1e6:.1f} M parameters"
    )
    compare("EMA update", contestants, options["repeats"], GOAL)
