"""The training loss of every model here: weighted error on x0, per sample (EDM, equation 2)."""

from collections.abc import Callable

import torch
from torch import Tensor

from ldm.diffusion.cond import Condition
from ldm.diffusion.counter_random import normal, uniform
from ldm.diffusion.denoiser import ConditionalDenoise
from ldm.diffusion.noise import NoiseDistribution
from ldm.diffusion.objective import Errors, denoising
from ldm.errors import UserError

Loss = Callable[[Tensor, Tensor], Tensor]  # (error on x0 [B, ...], its weight [B]) -> [B]


def squared(error: Tensor, weight: Tensor) -> Tensor:
    """w mean(error^2) of each sample."""
    return weight * error.square().flatten(1).mean(1)


def absolute(error: Tensor, weight: Tensor) -> Tensor:
    """sqrt(w) mean(|error|) of each sample: w is a square's, so that the native weight is |F - target| here too."""
    return weight.sqrt() * error.abs().flatten(1).mean(1)


def pseudo_huber(error: Tensor, weight: Tensor, c: float = 0.00054) -> Tensor:
    """sqrt(w) (sqrt(mean(error^2) + c^2) - c) of each sample: its norm, but smooth below c (arXiv:2310.14189, 3.3).

    The published c = 0.00054 sqrt(number of values) is of the sum over values, so that this is of their mean.
    """
    if not c > 0:
        raise UserError(f"loss.c: must be positive, got {c:g}; for the norm itself take a small one")
    return weight.sqrt() * ((error.square().flatten(1).mean(1) + c**2).sqrt() - c)


def diffusion_loss(
    denoiser: ConditionalDenoise,
    x0: Tensor,
    sigma: Tensor,
    noise: Tensor,
    cond: Condition,
    weighting: Callable[[Tensor], Tensor],
    loss: Loss = squared,
    errors: Errors = denoising,
) -> Tensor:
    """x0, noise [B, ...], sigma [B] -> `loss` of the `errors` at x0 + sigma noise under w(sigma), fp32 [B]."""
    x0, sigma, noise = x0.float(), sigma.float(), noise.float()
    return loss(errors(denoiser, x0, sigma, noise, cond), weighting(sigma))


def stratified_losses(
    denoiser: ConditionalDenoise,
    x0: Tensor,
    cond: Condition,
    noise: NoiseDistribution,
    weighting: Callable[[Tensor], Tensor],
    seed: int,
    numbers: Tensor,
    num_levels: int,
    loss: Loss = squared,
    errors: Errors = denoising,
) -> Tensor:
    """Mean loss of each sample [B] over `num_levels` strata of `noise`; draws are fixed by (seed, numbers [B])."""
    losses = []
    for level in range(num_levels):
        u = (uniform(seed, "validation sigma", numbers, stream=level)[:, 0] + level) / num_levels
        n = normal(seed, "validation noise", numbers, x0.shape[1:], stream=level)
        losses.append(diffusion_loss(denoiser, x0, noise.icdf(u), n, cond, weighting, loss, errors))
    return torch.stack(losses).mean(0)
