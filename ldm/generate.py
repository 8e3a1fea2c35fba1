"""Sampling, once for all who need it: ladder, bound condition, guidance, sampler, decode (walk 2 of the design).

An image is a function of the model, its prompt, the seed and its number: not of the batch or the rank it is made in.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from ldm.conditioners.base import Conditioners
from ldm.diffusion.draws import normal
from ldm.diffusion.guidance import ClassifierFree
from ldm.diffusion.schedule import Schedule
from ldm.diffusion.sigmas import init_noise


@dataclass(frozen=True)
class Sampling:
    """A `sampler`, its ladder `sigmas` [num_steps + 1], `guidance`, and the `process` that scales the first x."""

    sampler: Callable[..., Tensor]
    sigmas: Tensor
    guidance: ClassifierFree
    process: Schedule


@torch.no_grad()
def generate(
    denoiser: nn.Module,
    conditioner: Conditioners,
    first_stage: nn.Module,
    sampling: Sampling,
    batch: dict[str, Any],
    numbers: Tensor,
    seed: int,
    size: int,
    negative: dict[str, Any] | None = None,
) -> Tensor:
    """Images [B, 3, size, size] in [-1, 1] for the conditions in `batch`; `numbers` [B] address their noise.

    Without `negative` (a batch like `batch`) guidance is against the conditioner's null.
    """
    spec = first_stage.spec
    if size % spec.f:
        raise ValueError(f"image_size={size}: must be a multiple of the first stage's f = {spec.f}")
    shape = (spec.channels, size // spec.f, size // spec.f)
    keep = conditioner.drop_none(len(numbers))
    cond = conditioner(batch, drop=keep)

    @cache
    def null() -> dict[str, Tensor]:  # asked for by guidance that compares, which is not every one
        drop = keep if negative else conditioner.drop_all(len(numbers))
        return conditioner(negative or batch, drop=drop)

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        return denoiser(x, sigma, cond)

    def reference(x: Tensor, sigma: Tensor) -> Tensor:
        return denoiser(x, sigma, null())

    def noise(step: int) -> Tensor:
        return normal(seed, "sampler noise", numbers, shape, stream=step)

    x = init_noise(normal(seed, "first noise", numbers, shape), sampling.sigmas[0].item(), sampling.process)
    z = sampling.sampler(sampling.guidance(denoise, reference), x, sampling.sigmas, noise=noise)
    return first_stage.decode(z).float().clamp(-1, 1)
