"""Guidance: wraps `denoise(x, sigma) -> x0` together with a reference into one guided `denoise`.

Classifier-free guidance (arXiv:2207.12598), optionally in a limited interval of noise (arXiv:2404.07724). Linear in D,
so it is the same on noise, v or velocity. Samplers never know of it.
"""

import math

import torch
from torch import Tensor

from ldm.diffusion.denoiser import Denoise, expand


class ClassifierFree:
    """D = D_u + scale (D_c - D_u) where sigma lies in [sigma_lo, sigma_hi), D_c elsewhere; scale 0 is the reference.

    `rescale` draws the standard deviation of the guided D towards that of D_c, each over all values of a sample
    (arXiv:2305.08891, equations 15 and 16, on x0): 0 not at all, 1 wholly.
    """

    def __init__(self, scale: float, sigma_lo: float = 0.0, sigma_hi: float = math.inf, rescale: float = 0.0):
        if not math.isfinite(scale):
            raise ValueError(f"scale: must be finite, got {scale:g}")
        if not 0 <= sigma_lo < sigma_hi:
            raise ValueError(f"sigma_lo, sigma_hi: need 0 <= sigma_lo < sigma_hi, got {sigma_lo:g} and {sigma_hi:g}")
        if not 0 <= rescale <= 1:
            raise ValueError(f"rescale: must lie in [0, 1], got {rescale:g}")
        self.scale = scale
        self.rescale = rescale
        self.sigma_lo = sigma_lo
        self.sigma_hi = sigma_hi

    def __call__(self, denoise: Denoise, reference: Denoise) -> Denoise:
        """`denoise` with the condition and `reference` without it (or a weaker model) -> the guided one."""
        if self.scale == 1:
            return denoise
        inner = reference if self.scale == 0 else self._blend(denoise, reference)
        if self.sigma_lo == 0 and self.sigma_hi == math.inf:
            return inner
        return self._limit(denoise, inner)

    def _blend(self, denoise: Denoise, reference: Denoise) -> Denoise:
        def guided(x: Tensor, sigma: Tensor) -> Tensor:
            conditional = denoise(x, sigma)
            blended = torch.lerp(reference(x, sigma), conditional, self.scale)
            if not self.rescale:
                return blended
            ratio = conditional.flatten(1).std(1) / blended.flatten(1).std(1).clamp(min=1e-12)
            return blended * (1 + self.rescale * (expand(ratio, x) - 1))

        return guided

    def _limit(self, outer: Denoise, inner: Denoise) -> Denoise:
        def limited(x: Tensor, sigma: Tensor) -> Tensor:
            inside = (sigma >= self.sigma_lo) & (sigma < self.sigma_hi)
            if bool(inside.all()):
                return inner(x, sigma)
            if not bool(inside.any()):
                return outer(x, sigma)
            return torch.where(expand(inside, x), inner(x, sigma), outer(x, sigma))

        return limited
