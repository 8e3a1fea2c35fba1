"""Distilling a denoiser into a consistency function, which sampling asks once or a few times (samplers.consistency).

Consistency models: arXiv:2303.01469; trained as "easy consistency tuning", arXiv:2406.14548: it begins with a finished
denoiser and moves along the sample's own noise, so that no solver and no second model are needed. It knows no guidance:
the function is that of the conditional distribution, as guidance at scale 1.
"""

import math

import torch
from torch import Tensor

from ldm.diffusion.cond import Condition
from ldm.diffusion.denoiser import ConditionalDenoise, expand
from ldm.diffusion.experts import Expert
from ldm.diffusion.precond import Precond
from ldm.errors import UserError

_LOW = 1e-4  # a sigma at which a consistency function is x, but for this share of it
MOST_HALVINGS = 24  # of the gap: of more, fp32 has 1 in the place of 1 - gap


class Consistency:
    """D is the same at two levels of one path, sigma and a lower r, which comes closer as the training goes on.

    The errors are (D(x0 + sigma n; sigma) - D(x0 + r n; r)) sigma / (sigma - r), without a gradient of the lower level,
    whose target is x0 itself where r is 0: a denoiser's own errors there. The gap (sigma - r) / sigma is
    min(1, (1 + k sigmoid(-b sigma)) / factor^n) in the n-th stage of `every_steps` optimizer steps (arXiv:2406.14548,
    section 3). Both levels are estimated with the same dropout. Raises UserError for numbers out of their range, for
    more stages in `max_steps` than fp32 tells levels apart in, for a `precond` under which D(x; 0) is not x, and for
    an `expert` of a part of the noise, whose r would lie outside.
    """

    def __init__(
        self,
        precond: Precond,
        expert: Expert,
        max_steps: int,
        every_steps: int,
        factor: float = 2.0,
        k: float = 8.0,
        b: float = 1.0,
    ):
        if every_steps < 1:
            raise UserError(f"objective.every_steps: must be at least 1, got {every_steps}")
        if not factor > 1:
            raise UserError(f"objective.factor: must be above 1, got {factor:g}")
        stages, most = math.ceil(max_steps / every_steps), int(MOST_HALVINGS / math.log2(factor))
        if stages > most:
            raise UserError(
                f"objective.every_steps={every_steps}: max_steps={max_steps} are {stages} stages, and after {most} "
                "of them both levels are one number in fp32, which teaches nothing; take a few: objective.every_steps="
                f"{math.ceil(max_steps / 4)}"
            )
        if k < 0 or b < 0:
            raise UserError(f"objective.k, objective.b: must be at least 0, got {k:g} and {b:g}")
        c_skip, c_out, *_ = (each.item() for each in precond(torch.tensor([_LOW], dtype=torch.float64)))
        if abs(c_skip - 1) > 2 * _LOW or abs(c_out) > 2 * _LOW:
            raise UserError(
                f"precond ({type(precond).__name__}): D(x; 0) is not x under it, which objective=consistency goes by; "
                "take a parent with precond=edm, v, eps or flow"
            )
        if not expert.is_whole:
            raise UserError("expert: objective=consistency leads through all of the noise; distil the whole model")
        self.every_steps = every_steps
        self.factor = factor
        self.k = k
        self.b = b

    def gap(self, sigma: Tensor, step: int) -> Tensor:
        """(sigma - r) / sigma of sigma [B] after `step` optimizer steps, in (0, 1]."""
        stage = step // self.every_steps + 1
        return ((1 + self.k * torch.sigmoid(-self.b * sigma)) / self.factor**stage).clamp(max=1)

    def __call__(
        self, denoiser: ConditionalDenoise, x0: Tensor, sigma: Tensor, noise: Tensor, cond: Condition, step: int
    ) -> Tensor:
        """x0, noise [B, ...], sigma [B] -> the errors, like x0."""
        gap = self.gap(sigma, step)
        lower = sigma * (1 - gap)
        # The upper level first, as autocast would use weights that it has cast without a gradient for it too. Then the
        # generators go back, so that layers draw the same again.
        with torch.random.fork_rng([x0.device] if x0.device.type == "cuda" else []):
            estimate = denoiser(x0 + expand(sigma, x0) * noise, sigma, cond)
        with torch.no_grad():
            asked = torch.where(lower > 0, lower, sigma)  # a network is not asked at 0
            target = denoiser(x0 + expand(asked, x0) * noise, asked, cond)
            target = torch.where(expand(lower > 0, x0), target, x0)
        return (estimate - target) / expand(gap, x0)
