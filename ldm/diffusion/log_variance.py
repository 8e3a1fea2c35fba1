"""The learned log-variance u(sigma) of the loss at each noise level (EDM2, arXiv:2312.02696, equations 14 to 17).

Its minimum is u(sigma) = ln E[L | sigma]: dividing by exp(u) lets all levels weigh alike, and the curve shows where the
model is weak. Only training needs it.
"""

import math

import torch
from torch import Tensor, nn

from ldm.errors import UserError


class LogVariance(nn.Module):
    """`(sigma [B]) -> u [B]`, fp32: `channels` Fourier features of ln(sigma) / 4 with learned weights, 0 at first."""

    def __init__(self, channels: int = 128):
        if channels < 1:
            raise UserError(f"log_variance.channels={channels}: must be at least 1")
        super().__init__()
        place = torch.arange(channels, dtype=torch.float64)
        # Frequencies are the quantiles of N(0, 1), phases a golden-ratio sequence: no draw, the same in every run.
        frequencies = torch.special.ndtri((place + 0.5) / channels)
        phases = place * (math.sqrt(5) - 1) / 2 % 1
        self.register_buffer("frequencies", 2 * math.pi * frequencies.float(), persistent=False)
        self.register_buffer("phases", 2 * math.pi * phases.float(), persistent=False)
        self.weight = nn.Parameter(torch.zeros(channels))

    def forward(self, sigma: Tensor) -> Tensor:
        angle = self.frequencies * (sigma.float().log() / 4).unsqueeze(-1) + self.phases  # [B, channels]
        return (angle.cos() * self.weight).sum(-1) * (2 / len(self.weight)) ** 0.5


def uncertain(losses: Tensor, log_variance: Tensor) -> Tensor:
    """Weighted losses L [B] and u [B] -> L / exp(u) + u [B] (EDM2, equation 14), least where u is ln E[L]."""
    return losses / log_variance.exp() + log_variance
