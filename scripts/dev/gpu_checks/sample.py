"""Sampling by Stable Diffusion 1.5's U-Net, one image of 512 px, guided: steps a second, in bf16 and in fp32.

Guidance's two evaluations come one after the other, or in one batch as with one_call=true.
"""

from pathlib import Path

import torch
from torch import Tensor

from gpu_checks.models import SIZES, milliseconds, tokens, unet
from gpu_checks.table import NEEDS_GPU, Row
from ldm.diffusion.branches import Together, apart
from ldm.diffusion.denoiser import Denoise, Denoiser
from ldm.diffusion.guidance import ClassifierFree
from ldm.diffusion.precond import Eps
from ldm.diffusion.samplers import euler
from ldm.diffusion.schedule import scaled_linear
from ldm.diffusion.sigmas import karras
from ldm.model import lower_denoiser
from ldm.networks.compiling import Compile
from ldm.networks.layers import tuned
from ldm.networks.precision import Precision

GOAL, NUM_STEPS, SCALE = 50.0, 10, 7.5  # guided steps a second of an A100
HOW: dict[str, Compile] = {"eager": False, "graphs": "graphs"}


def measure(device: torch.device, size: str, out: Path, how: str) -> list[Row]:
    """Steps a second of both ways to guide."""
    own = SIZES[size]
    if HOW[how] and device.type == "cpu":
        return [Row(f"sampling, 512 px, {how}", None, note=NEEDS_GPU)]
    network = tuned(unet(own, "v1", device).eval().requires_grad_(False), device, HOW[how])
    denoiser = Denoiser(network, Eps(scaled_linear(0.00085, 0.012)))
    given, null = (tokens(own, "v1", 1, device) for _ in range(2))
    x, sigmas = 14.6 * torch.randn(1, 4, own.latent[512], own.latent[512], device=device), karras(NUM_STEPS, 0.03, 14.6)
    conditions = {frozenset(["text"]): {"tokens": given}, frozenset(): {"tokens": null}}
    ways = {}
    for name, made in (("two calls", apart), ("one call", Together)):
        branch = made(denoiser, conditions.__getitem__)
        ways[name] = ClassifierFree(SCALE)(branch(["text"]), branch(()))
    rows, goal = [], GOAL if device.type == "cuda" and size == "sd2" else None
    asked: list[tuple[str, Precision]] = [("two calls", "fp32")] if how == "eager" else []
    for name, precision in (*asked, ("two calls", "bf16"), ("one call", "bf16")):
        lower_denoiser(denoiser, precision, device)

        def image(denoise: Denoise = ways[name]) -> Tensor:
            return euler(denoise, x, sigmas)

        with torch.no_grad():
            taken = milliseconds(image, device, own.seconds / 3)
        said = f"sampling, 512 px, {how}, {name}, {precision}"
        rows.append(Row(said, 1e3 * NUM_STEPS / taken, "steps/s", goal if precision == "bf16" else None))
    return rows
