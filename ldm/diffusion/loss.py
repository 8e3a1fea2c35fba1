"""The training objective of every model here: weighted squared error on x0, per sample (EDM, equation 2)."""

from torch import Tensor

from ldm.diffusion.denoiser import Denoiser, expand
from ldm.diffusion.weighting import Weighting


def diffusion_loss(
    denoiser: Denoiser, x0: Tensor, sigma: Tensor, noise: Tensor, cond: dict[str, Tensor], weighting: Weighting
) -> Tensor:
    """x0, noise [B, ...], sigma [B] -> w(sigma) mean((D(x0 + sigma noise; sigma, cond) - x0)^2), fp32 [B]."""
    x0, sigma, noise = x0.float(), sigma.float(), noise.float()
    estimate = denoiser(x0 + expand(sigma, x0) * noise, sigma, cond)
    return weighting(sigma) * (estimate - x0).square().flatten(1).mean(1)
