"""Jumps back in time, which give what is drawn several goes at what is held (RePaint, arXiv:2201.09865)."""

import math
from itertools import count

import torch
from torch import Tensor

from ldm.diffusion.denoiser import Denoise
from ldm.diffusion.samplers import Noise, ddpm, steps
from ldm.errors import UserError


@torch.no_grad()
def repaint(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise | None = None,
    num_resamples: int = 10,
    jump_length: int = 1,
) -> Tensor:
    """DDPM in which every `jump_length` steps are gone `num_resamples` times, noised back in between (Algorithm 1).

    What is held is held by `denoise` (sampling.Known), here as in any sampler; where nothing is, it is a longer chain
    with the same distribution. The last steps, into 0, are gone once, as published for jumps of one.
    """
    if num_resamples < 1 or jump_length < 1:
        raise UserError(f"sampler.num_resamples={num_resamples}, sampler.jump_length={jump_length}: must be at least 1")
    if noise is None:
        raise UserError("noise: a stochastic sampler needs noise(step); pass it")
    draws = count()

    def fresh(step: int) -> Tensor:
        return noise(next(draws))

    levels = [sigma for sigma, _ in steps(sigmas)] + [sigmas[-1].item()]
    for first in range(0, len(levels) - 1, jump_length):
        down = levels[first : first + jump_length + 1]
        for go in range(num_resamples if down[-1] > 0 else 1):
            if go > 0:
                x = x + math.sqrt(down[0] ** 2 - down[-1] ** 2) * fresh(0)
            x = ddpm(denoise, x, sigmas.new_tensor(down), noise=fresh)
    return x
