"""Small pictures that are not as clean as those of a resize: blurred before, noisy after (SR3, arXiv 2104.07636, A)."""

import math

import numpy as np
import torch
import torch.nn.functional as F

from ldm.data.counter_random import uniform
from ldm.data.fields.derived import Derived
from ldm.data.fields.low_resolution import reduced_size
from ldm.data.fields.picture import Picture
from ldm.data.user_error import UserError

REACH = 3  # standard deviations of a blur that are kept


class Degraded(Derived):
    """float32 [B, 3, H / factor, W / factor]: the window, blurred by a Gaussian, reduced, and with noise added.

    The blur's standard deviation is drawn in [0, max_blur] px of the window, that of the noise in [0, max_noise], where
    pixels lie in [-1, 1]; both for each sample.
    """

    yields = "float32 [B, 3, h, w]"
    degrades = True

    def __init__(self, seed: int, factor: int = 4, max_blur: float = 2.0, max_noise: float = 0.1):
        if max_blur < 0 or max_noise < 0:
            raise UserError(f"Degraded: max_blur={max_blur} and max_noise={max_noise} have to be at least 0")
        self.given = Picture(factor=factor)
        self.reduces = factor
        self.seed = seed
        self.max_blur = max_blur
        self.max_noise = max_noise

    def make(self, windows: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        """Drawn by (seed, sample number). Raises ValueError for windows whose sides are not multiples of `factor`."""
        size = reduced_size(windows, self.reduces)
        amounts = torch.from_numpy(uniform(self.seed, "degradation", numbers.numpy(), 2)).float()
        blurred = torch.stack([_blur(*pair) for pair in zip(windows, amounts[:, 0] * self.max_blur, strict=True)])
        low = F.interpolate(blurred, size, mode="bicubic", antialias=True)
        noise = _normal(self.seed, numbers.numpy(), low.shape[1:])
        return (low + noise * (amounts[:, 1] * self.max_noise).view(-1, 1, 1, 1)).clamp(-1, 1)


def _blur(window: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """A window [3, H, W] blurred by a Gaussian of `std` px, its border repeated."""
    reach = math.ceil(REACH * float(std))
    if reach == 0:
        return window
    weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / std) ** 2)
    weights = (weights / weights.sum()).expand(3, 1, 1, -1)
    padded = F.pad(window[None], (reach,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, weights, groups=3), weights.transpose(2, 3), groups=3)[0]


def _normal(seed: int, numbers: np.ndarray, shape: torch.Size) -> torch.Tensor:
    """Standard normals [B, *shape] by Box and Muller."""
    count = math.prod(shape)
    draws = uniform(seed, "degradation noise", numbers, 2 * count)
    radius = np.sqrt(-2 * np.log1p(-draws[:, :count]))
    return torch.from_numpy(radius * np.cos(2 * np.pi * draws[:, count:])).float().reshape(-1, *shape)
