"""Weights w(sigma) of the squared error on x0; every published loss is one of them, whatever the network predicts."""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ldm.diffusion.noise import DiscreteNoise, NoiseDistribution
from ldm.diffusion.precond import Precond
from ldm.errors import UserError


class Weighting(ABC):
    """`(sigma [B]) -> w [B]`, positive."""

    @abstractmethod
    def __call__(self, sigma: Tensor) -> Tensor: ...


class Unit(Weighting):
    """Plain squared error on x0."""

    def __call__(self, sigma: Tensor) -> Tensor:
        return torch.ones_like(sigma)


class Native(Weighting):
    """1 / c_out^2: plain squared error on what the network predicts (noise, v, velocity, EDM's F)."""

    def __init__(self, precond: Precond):
        self.precond = precond

    def __call__(self, sigma: Tensor) -> Tensor:
        c_out = self.precond(sigma)[1]
        return 1 / c_out**2


class EDMWeighting(Weighting):
    """(sigma^2 + sigma_data^2) / (sigma sigma_data)^2 under any parametrisation (arXiv:2206.00364, Table 1)."""

    def __init__(self, sigma_data: float):
        if not sigma_data > 0:
            raise UserError(f"sigma_data: must be positive, got {sigma_data:g}; whitened latents have 1")
        self.sigma_data = sigma_data

    def __call__(self, sigma: Tensor) -> Tensor:
        return 1 / sigma**2 + 1 / self.sigma_data**2


class SoftMinSNR(Weighting):
    """gamma SNR / (SNR + gamma): min-SNR without its corner (arXiv:2401.11605, section 4)."""

    def __init__(self, gamma: float = 4.0):
        if not gamma > 0:
            raise UserError(f"gamma: must be positive, got {gamma:g}")
        self.gamma = gamma

    def __call__(self, sigma: Tensor) -> Tensor:
        return self.gamma / (1 + self.gamma * sigma**2)


class ELBO(Weighting):
    """-d SNR / d ln(sigma) / 2 = 1 / sigma^2 over the density of ln(sigma): the variational bound (arXiv:2107.00630).

    Their equation 15 for x0, as importance weights of the training `noise`, so that the expectation is the bound's
    integral over ln(sigma) whatever noise is trained on.
    """

    def __init__(self, noise: NoiseDistribution):
        if isinstance(noise, DiscreteNoise):
            raise UserError("weighting=elbo: needs a noise with a density; noise=discrete has steps")
        self.noise = noise

    def __call__(self, sigma: Tensor) -> Tensor:
        low, high = (self.noise.cdf(sigma.double() * math.exp(shift)) for shift in (-_STEP, _STEP))
        return (1 / sigma.double() ** 2 / ((high - low) / (2 * _STEP)).clamp(min=1e-12)).to(sigma)


_STEP = 0.02  # in ln(sigma), of the density's central difference


class MinSNR(Weighting):
    """min(SNR, gamma) with SNR = 1 / sigma^2 (arXiv:2303.09556): on x0 it is the same for every parametrisation."""

    def __init__(self, gamma: float = 5.0):
        if not gamma > 0:
            raise UserError(f"gamma: must be positive, got {gamma:g}")
        self.gamma = gamma

    def __call__(self, sigma: Tensor) -> Tensor:
        return (1 / sigma**2).clamp(max=self.gamma)
