"""The training objective of every model here: weighted squared error on x0, per sample (EDM, equation 2)."""

import torch
from torch import Tensor

from ldm.diffusion.denoiser import Denoiser, expand
from ldm.diffusion.draws import normal, uniform
from ldm.diffusion.noise import NoiseDistribution
from ldm.diffusion.weighting import Weighting


def diffusion_loss(
    denoiser: Denoiser, x0: Tensor, sigma: Tensor, noise: Tensor, cond: dict[str, Tensor], weighting: Weighting
) -> Tensor:
    """x0, noise [B, ...], sigma [B] -> w(sigma) mean((D(x0 + sigma noise; sigma, cond) - x0)^2), fp32 [B]."""
    x0, sigma, noise = x0.float(), sigma.float(), noise.float()
    estimate = denoiser(x0 + expand(sigma, x0) * noise, sigma, cond)
    return weighting(sigma) * (estimate - x0).square().flatten(1).mean(1)


def stratified_losses(
    denoiser: Denoiser,
    x0: Tensor,
    cond: dict[str, Tensor],
    noise: NoiseDistribution,
    weighting: Weighting,
    seed: int,
    numbers: Tensor,
    num_levels: int,
) -> Tensor:
    """Mean loss of each sample [B] over `num_levels` strata of `noise`; draws are fixed by (seed, numbers [B])."""
    losses = []
    for level in range(num_levels):
        u = (uniform(seed, "validation sigma", numbers, stream=level)[:, 0] + level) / num_levels
        n = normal(seed, "validation noise", numbers, x0.shape[1:], stream=level)
        losses.append(diffusion_loss(denoiser, x0, noise.icdf(u), n, cond, weighting))
    return torch.stack(losses).mean(0)
