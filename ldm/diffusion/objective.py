"""What a denoiser is trained to meet: an objective gives the errors of its estimates, which a loss weighs (loss.py)."""

from collections.abc import Callable

from torch import Tensor

from ldm.diffusion.cond import Condition
from ldm.diffusion.denoiser import ConditionalDenoise, expand

# (denoiser, x0 [B, ...], sigma [B], noise like x0, cond) -> errors like x0, of what is estimated at x0 + sigma noise.
Errors = Callable[[ConditionalDenoise, Tensor, Tensor, Tensor, Condition], Tensor]
# The same with the optimizer step last, for what changes while it is trained: Errors once the step is bound.
Objective = Callable[[ConditionalDenoise, Tensor, Tensor, Tensor, Condition, int], Tensor]


def denoising(
    denoiser: ConditionalDenoise, x0: Tensor, sigma: Tensor, noise: Tensor, cond: Condition, step: int = 0
) -> Tensor:
    """D(x0 + sigma noise; sigma, cond) - x0 at every step: the objective of diffusion models (EDM, equation 2)."""
    return denoiser(x0 + expand(sigma, x0) * noise, sigma, cond) - x0
