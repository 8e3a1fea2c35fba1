"""A training step of Stable Diffusion 2's U-Net on latents that are there: images a second, share of the peak, memory.

All that a run's step does with a batch of cached latents and texts: draws by sample number, loss, gradients, their
norm, the guard, AdamW, the average. In bf16, eager, compiled by blocks or whole.
"""

import gc
import json
from contextlib import suppress
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from gpu_checks.models import SIZES, Size, milliseconds, tokens, unet
from gpu_checks.table import NEEDS_GPU, Row
from ldm.diffusion.counter_random import normal, uniform
from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.loss import diffusion_loss
from ldm.diffusion.noise import LogNormal, stratify
from ldm.diffusion.precond import V
from ldm.diffusion.schedule import scaled_linear
from ldm.diffusion.weighting import Native
from ldm.networks.compiling import Compile
from ldm.networks.layers import tuned
from ldm.training import flops
from ldm.training.ema import EMA
from ldm.training.guard import Guard
from ldm.training.optim import adamw

GOALS = {256: 170.0, 512: 45.0}  # images a second of an A100
HOW: dict[str, Compile] = {"eager": False, "blocks": "blocks", "whole": "whole"}


def measure(device: torch.device, size: str, out: Path, px: str, how: str) -> list[Row]:
    """At the largest batch that fits, or where `how` compiles at that of the eager measurement."""
    own, edge = SIZES[size], int(px)
    if HOW[how] and device.type == "cpu":
        return [Row(f"training, {px} px, {how}", None, note=NEEDS_GPU)]
    for batch_size in _batches(own, out / f"train_{px}_eager.json", how):
        with suppress(torch.OutOfMemoryError):
            return _rows(Steps(own, device, own.latent[edge], batch_size, HOW[how]), edge, how)
        gc.collect()  # of the attempt that did not fit
        torch.cuda.empty_cache()
    return [Row(f"training, {px} px, {how}", None, note="does not fit")]


def _batches(own: Size, eager: Path, how: str) -> tuple[int, ...]:
    """Those to try: the one that the eager measurement has taken, where that is known."""
    if how == "eager" or not eager.exists():
        return own.batches
    rows = json.loads(eager.read_text()).get("rows", [])
    return tuple(int(row["value"]) for row in rows if row["what"] == "batch") or own.batches


class Steps:
    """Training steps, one after the other, of a network of its own."""

    def __init__(self, own: Size, device: torch.device, edge: int, batch_size: int, how: Compile = False, **more: bool):
        self.own, self.device, self.batch_size = own, device, batch_size
        self.network = unet(own, "v2", device, **more)
        precond = V(scaled_linear(0.00085, 0.012))
        self.denoiser = Denoiser(self.network, precond)
        self.weighting, self.noise = Native(precond), LogNormal(0.0, 1.0)
        self.latents = torch.randn(batch_size, 4, edge, edge, device=device)
        self.tokens = tokens(own, "v2", batch_size, device)
        self.flop = self._flop()
        tuned(self.network, device, how)
        self.optimizer, self.average, self.guard = adamw(lr=1e-6)(self.network), EMA(self.network), Guard(self.network)
        self.numbers = torch.arange(batch_size, device=device)

    def __call__(self) -> None:
        self.loss().backward()
        parameters = [parameter for parameter in self.network.parameters() if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in parameters], foreach=True)
        torch.nn.utils.clip_grads_with_norm_(parameters, 1.0, norm, foreach=True)
        self.guard.judge(norm, self.optimizer)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.guard.settle()
        self.average.update()
        self.numbers += self.batch_size

    def loss(self) -> torch.Tensor:
        """Of one batch, a scalar."""
        u = stratify(uniform(0, "sigma", self.numbers)[:, 0], self.numbers, self.batch_size)
        noise = normal(0, "noise", self.numbers, self.latents.shape[1:])
        with torch.autocast(self.device.type, torch.bfloat16):
            sigma, cond = self.noise.icdf(u).float(), {"tokens": self.tokens}
            return diffusion_loss(self.denoiser, self.latents, sigma, noise, cond, self.weighting).mean()

    def _flop(self) -> int:
        """Of one image, forward and backward."""
        x, t = self.latents[:1], torch.ones(1, device=self.device)
        with FlopCounterMode(display=False) as counter, torch.autocast(self.device.type, torch.bfloat16):
            self.network(x, t, tokens=self.tokens[:1]).float().sum().backward()
        self.network.zero_grad()
        return counter.get_total_flops()


def _rows(steps: Steps, px: int, how: str) -> list[Row]:
    taken = milliseconds(steps, steps.device, steps.own.seconds)
    rate, peak = 1e3 * steps.batch_size / taken, flops.peak(steps.device, "bf16-mixed")
    goal = GOALS[px] if steps.device.type == "cuda" and steps.own is SIZES["sd2"] else None
    rows = [
        Row(f"training, {px} px, {how}", rate, "images/s", goal),
        Row("batch", steps.batch_size, "images"),
        Row("a step", taken, "ms"),
        Row("arithmetic of an image", steps.flop / 1e9, "GFLOP"),
    ]
    if peak:
        rows.append(Row("share of the peak (MFU)", 100 * rate * steps.flop / peak, "%"))
    if steps.device.type == "cuda":
        rows.append(Row("memory", torch.cuda.max_memory_allocated(steps.device) / 2**30, "GiB"))
    return rows
