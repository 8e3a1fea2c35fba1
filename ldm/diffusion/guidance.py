"""Guidance: wraps `denoise(x, sigma) -> x0` together with what it is compared with into one guided `denoise`.

Classifier-free guidance (arXiv:2207.12598), optionally in a limited interval of noise (arXiv:2404.07724). Linear in D,
so it is the same on noise, v or velocity. Samplers never know of it.
"""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ldm.diffusion.denoiser import Denoise, expand


@dataclass(frozen=True)
class Bound:
    """A denoiser bound to the conditions of a batch: all that guidance is made from.

    `denoise` has every condition given, and is guided by whatever comes before in the declared order. `given(names)` is
    the denoiser with only those of `conditions` given and for each other its negative or its null; not called, it costs
    nothing. `decode` takes a latent [B, C, h, w] to an image [B, 3, H, W] and can be differentiated.
    """

    denoise: Denoise
    given: Callable[[Collection[str]], Denoise]
    conditions: tuple[str, ...]
    batch: Mapping[str, Any]
    num_samples: int
    decode: Callable[[Tensor], Tensor]


class Guidance(Protocol):
    """What steers sampling: one method, called once for each batch."""

    def guide(self, bound: Bound) -> Denoise:
        """The guided form of `bound.denoise`."""


class ScaledGuidance(Guidance, Protocol):
    """Guidance that compares, by a scale that can be varied: 0 is what it compares with, 1 no guidance."""

    def with_scale(self, scale: float) -> "ScaledGuidance":
        """The same guidance at another scale."""


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

    def guide(self, bound: Bound) -> Denoise:
        """Guided away from what the denoiser gives without any condition."""
        return self(bound.denoise, bound.given(()))

    def with_scale(self, scale: float) -> "ClassifierFree":
        """The same guidance at another scale."""
        return ClassifierFree(scale, self.sigma_lo, self.sigma_hi, self.rescale)

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
