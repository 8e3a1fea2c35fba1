"""Parametrisations as four coefficients of one denoiser, D(x) = c_skip x + c_out F(c_in x, c_noise).

EDM (arXiv:2206.00364, Table 1); v: arXiv:2202.00512; flow: arXiv:2209.03003. Each is a function of sigma [B];
c_noise is the schedule's. A parametrisation's own MSE on F is MSE on x0 weighted by 1 / c_out^2 (weighting.Native).
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ldm.diffusion.schedule import Schedule
from ldm.errors import UserError

Coefficients = tuple[Tensor, Tensor, Tensor, Tensor]


class Precond(ABC):
    """`(sigma [B]) -> c_skip, c_out, c_in, c_noise`, each [B]."""

    @abstractmethod
    def __call__(self, sigma: Tensor) -> Coefficients: ...


def _norm(sigma: Tensor) -> Tensor:
    """sqrt(1 + sigma^2): the standard deviation of x when that of x0 is 1."""
    return (1 + sigma**2).sqrt()


class Eps(Precond):
    """F predicts the noise."""

    def __init__(self, schedule: Schedule):
        if schedule.is_pure_noise:
            raise UserError(
                "precond: eps-prediction says nothing of x0 where the schedule ends in pure noise; "
                "choose precond=v, x0 or flow, or a schedule without zero terminal SNR"
            )
        self.schedule = schedule

    def __call__(self, sigma: Tensor) -> Coefficients:
        return torch.ones_like(sigma), -sigma, 1 / _norm(sigma), self.schedule.c_noise(sigma)


class V(Precond):
    """F predicts v = (noise - sigma x0) / sqrt(1 + sigma^2)."""

    def __init__(self, schedule: Schedule):
        self.schedule = schedule

    def __call__(self, sigma: Tensor) -> Coefficients:
        norm = _norm(sigma)
        return 1 / norm**2, -sigma / norm, 1 / norm, self.schedule.c_noise(sigma)


class X0(Precond):
    """F predicts x0."""

    def __init__(self, schedule: Schedule):
        self.schedule = schedule

    def __call__(self, sigma: Tensor) -> Coefficients:
        return torch.zeros_like(sigma), torch.ones_like(sigma), 1 / _norm(sigma), self.schedule.c_noise(sigma)


class Flow(Precond):
    """F predicts the velocity noise - x0 of the straight path (1 - t) x0 + t noise, t = sigma / (1 + sigma)."""

    def __init__(self, schedule: Schedule):
        self.schedule = schedule

    def __call__(self, sigma: Tensor) -> Coefficients:
        c_in = 1 / (1 + sigma)
        return c_in, -sigma * c_in, c_in, self.schedule.c_noise(sigma)


class Regression(Precond):
    """F predicts x0 from its conditions alone: it sees neither x nor sigma, so that one step draws the mean of x0.

    The baseline of super-resolution without diffusion (SR3, arXiv 2104.07636, section 4.2), by the same network.
    """

    def __call__(self, sigma: Tensor) -> Coefficients:
        zeros = torch.zeros_like(sigma)
        return zeros, torch.ones_like(sigma), zeros, zeros


class EDM(Precond):
    """F sees and predicts unit variance when the data's standard deviation is sigma_data (EDM, Table 1)."""

    def __init__(self, schedule: Schedule, sigma_data: float):
        if not sigma_data > 0:
            raise UserError(f"sigma_data: must be positive, got {sigma_data:g}; whitened latents have 1")
        self.schedule = schedule
        self.sigma_data = sigma_data

    def __call__(self, sigma: Tensor) -> Coefficients:
        norm = (sigma**2 + self.sigma_data**2).sqrt()
        return (self.sigma_data / norm) ** 2, sigma * self.sigma_data / norm, 1 / norm, self.schedule.c_noise(sigma)
