"""How much of guidance is taken, at which noise and in which channels: one wrapper for every kind of guidance."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ldm.diffusion.denoiser import Denoise, expand
from ldm.errors import UserError

# The formula of a guidance: (x [B, ...], sigma [B], D_c, the estimate to guide) -> guided estimate of x0 [B, ...].
Formula = Callable[[Tensor, Tensor, Tensor], Tensor]


class Limits:
    """How much of guidance is taken and where, in this order: `profile`, `channels`, `rescale`, all in the interval.

    `profile`: points [sigma, share], share of D_guided - D_c that is taken, linear in ln(sigma) between the points and
    constant beyond them: any schedule of the scale (arXiv:2404.13040). `channels`: only these are guided (three of the
    four in the public code of arXiv:2212.09748). `rescale` draws the standard deviation of the guided D towards that of
    D_c, each over all values of a sample (arXiv:2305.08891, equations 15 and 16, on x0): 0 not at all, 1 wholly.
    Outside [sigma_lo, sigma_hi) (arXiv:2404.07724), and where the share is 0, the result is D_c and nothing else is
    evaluated. Raises ValueError naming the limit that is out of its range.
    """

    def __init__(
        self,
        sigma_lo: float = 0.0,
        sigma_hi: float = math.inf,
        rescale: float = 0.0,
        profile: Sequence[Sequence[float]] | None = None,
        channels: Sequence[int] | None = None,
    ):
        if not 0 <= sigma_lo < sigma_hi:
            raise UserError(
                f"limits.sigma_lo, limits.sigma_hi: need 0 <= sigma_lo < sigma_hi, got {sigma_lo:g} and {sigma_hi:g}"
            )
        if not 0 <= rescale <= 1:
            raise UserError(f"limits.rescale: must lie in [0, 1], got {rescale:g}")
        if profile is not None:
            _check_profile(profile)
        if channels is not None and (not channels or min(channels) < 0 or len(set(channels)) < len(channels)):
            raise UserError(
                f"limits.channels: must name channels of the latent from 0, each once, got {list(channels)}"
            )
        self.sigma_lo = sigma_lo
        self.sigma_hi = sigma_hi
        self.rescale = rescale
        self.profile = profile
        self.channels = channels

    @property
    def whole(self) -> bool:
        """Whether inside the interval all of what guidance gives is taken, in all channels."""
        return self.profile is None and self.channels is None

    def apply(self, denoise: Denoise, guided: Formula) -> Denoise:
        """`denoise`, which gives D_c, and the formula of a guidance -> the denoiser guided within these limits."""

        def inner(x: Tensor, sigma: Tensor) -> Tensor:
            conditional = denoise(x, sigma)
            return self.limit(x, sigma, conditional, guided(x, sigma, conditional))

        return self.within(denoise, inner)

    def limit(self, x: Tensor, sigma: Tensor, conditional: Tensor, result: Tensor) -> Tensor:
        """What is taken of the guided `result` instead of `conditional`, both [B, ...] and inside the interval."""
        if self.profile is not None:
            result = torch.lerp(conditional, result, expand(self._share(sigma), x).to(result))
        if self.channels is not None:
            result = torch.where(self._guided_channels(x), result, conditional)
        if self.rescale:
            ratio = conditional.flatten(1).std(1) / result.flatten(1).std(1).clamp(min=1e-12)
            result = result * (1 + self.rescale * (expand(ratio, x) - 1))
        return result

    def within(self, outer: Denoise, inner: Denoise) -> Denoise:
        """A denoiser that is `inner` inside the interval, where the share is above 0, and `outer` elsewhere."""
        if self.sigma_lo == 0 and self.sigma_hi == math.inf and self.profile is None:
            return inner

        def limited(x: Tensor, sigma: Tensor) -> Tensor:
            inside = (sigma >= self.sigma_lo) & (sigma < self.sigma_hi)
            if self.profile is not None:
                inside = inside & (self._share(sigma) > 0)
            if bool(inside.all()):
                return inner(x, sigma)
            if not bool(inside.any()):
                return outer(x, sigma)
            return torch.where(expand(inside, x), inner(x, sigma), outer(x, sigma))

        return limited

    def _share(self, sigma: Tensor) -> Tensor:
        points = torch.tensor(self.profile, dtype=torch.float32, device=sigma.device)
        levels, shares = points[:, 0].log(), points[:, 1].contiguous()
        place = sigma.float().log().clamp(levels[0], levels[-1]).contiguous()
        right = torch.searchsorted(levels.contiguous(), place).clamp(min=1)
        left = right - 1
        return torch.lerp(shares[left], shares[right], (place - levels[left]) / (levels[right] - levels[left]))

    def _guided_channels(self, x: Tensor) -> Tensor:
        if max(self.channels) >= x.shape[1]:
            raise UserError(
                f"limits.channels={list(self.channels)}: the latents of this model have channels 0..{x.shape[1] - 1}"
            )
        mask = torch.zeros(x.shape[1], dtype=torch.bool, device=x.device)
        mask[list(self.channels)] = True
        return mask.view(-1, *[1] * (x.ndim - 2))


def _check_profile(profile: Sequence[Sequence[float]]) -> None:
    pairs = len(profile) > 1 and all(len(point) == 2 for point in profile)
    levels = [point[0] for point in profile] if pairs else []
    rising = pairs and all(low < high for low, high in pairwise([0.0, *levels]))
    if not rising or not all(math.isfinite(sigma) and 0 <= share < math.inf for sigma, share in profile):
        raise UserError(
            "limits.profile: needs at least two points [sigma, share], sigma above 0 and rising, share not below 0; "
            f"got {[list(point) for point in profile]}"
        )
