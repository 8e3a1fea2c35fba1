"""Weights w(sigma) of the squared error on x0; every published loss is one of them, whatever the network predicts."""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ldm.diffusion.experts import Expert
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
    """The variational bound on x0 as importance weights of the training `noise`, whatever that is, or of what an
    `expert` draws from in its place (`within`).

    -d SNR / d ln(sigma) / 2 = 1 / sigma^2 over the density of ln(sigma) (arXiv:2107.00630, equation 15); of the T steps
    of a chain T / 2 (SNR(t - 1) - SNR(t)) (their equation 13, arXiv 2112.10752, equation 9). The first step, which is
    the reconstruction's, weighs as much on the noise as the second, as published.
    """

    def __init__(self, noise: NoiseDistribution, expert: Expert | None = None):
        self.noise = noise if expert is None or expert.within is None else expert.within
        self.steps = _bound_of_steps(self.noise.atoms) if isinstance(self.noise, DiscreteNoise) else None

    def __call__(self, sigma: Tensor) -> Tensor:
        if self.steps is not None:
            edges, weights = (each.to(sigma.device, non_blocking=True) for each in self.steps)
            return weights[torch.searchsorted(edges, sigma.double())].to(sigma)
        low, high = (self.noise.cdf(sigma.double() * math.exp(shift)) for shift in (-_STEP, _STEP))
        return (1 / sigma.double() ** 2 / ((high - low) / (2 * _STEP)).clamp(min=1e-12)).to(sigma)


def _bound_of_steps(sigmas: Tensor) -> tuple[Tensor, Tensor]:
    """(edges [T - 1] between the levels `sigmas` [T] of a chain, weights [T]), float64."""
    snr = 1 / sigmas**2
    weights = len(sigmas) / 2 * (snr[:-1] - snr[1:])
    return (sigmas[:-1] * sigmas[1:]).sqrt(), torch.cat([weights[:1] * snr[:1] / snr[1:2], weights])


_STEP = 0.02  # in ln(sigma), of the density's central difference


class MinSNR(Weighting):
    """min(SNR, gamma) with SNR = 1 / sigma^2 (arXiv:2303.09556): on x0 it is the same for every parametrisation."""

    def __init__(self, gamma: float = 5.0):
        if not gamma > 0:
            raise UserError(f"gamma: must be positive, got {gamma:g}")
        self.gamma = gamma

    def __call__(self, sigma: Tensor) -> Tensor:
        return (1 / sigma**2).clamp(max=self.gamma)
