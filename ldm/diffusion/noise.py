"""Distributions of the training sigma, each given by its cdf and its inverse in float64 (the one way to sample them).

So an expert is the same distribution restricted to intervals (`Restricted`): exact inverse CDF, never rejection.
Log-normal: EDM (arXiv:2206.00364); logit-normal flow time: arXiv:2403.03206. Schedules of sampling are sigmas.py;
importance sampling by past losses is resampling.py.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from ldm.diffusion import schedule as schedules
from ldm.errors import UserError

# An expert on less than a millionth of the draws would never be trained by them: refuse it as near-empty.
MIN_MASS = 1e-6
_LAST_UNIFORM = 1 - 2.0**-53  # the largest float64 below 1


class NoiseDistribution(ABC):
    """A distribution of sigma > 0."""

    @abstractmethod
    def cdf(self, sigma: Tensor) -> Tensor:
        """P(noise <= sigma), float64; sigma in [0, inf]."""

    @abstractmethod
    def icdf(self, u: Tensor) -> Tensor:
        """The smallest sigma with cdf(sigma) >= u, float64; u in [0, 1]."""

    def below(self, sigma: Tensor) -> Tensor:
        """P(noise < sigma), float64: the quantile at which the half-open interval [sigma, ...) begins."""
        sigma = sigma.double()
        return self.cdf(torch.nextafter(sigma, torch.zeros_like(sigma)))

    def level_of(self, step: float) -> float:
        """Sigma of a step of a discrete chain, 0 to T, T being above all: inf. UserError for a noise without steps."""
        raise UserError(f"t={step:g}: this training noise has no steps; give sigma, flow_t or quantile instead")

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """n independent draws, float64, on the generator's device."""
        u = torch.rand(n, dtype=torch.float64, generator=generator, device=generator.device)
        return self.icdf(u.clamp(min=2.0**-53))


def stratify(u: Tensor, numbers: Tensor, num_strata: int) -> Tensor:
    """Uniforms u [B] in (0, 1) put into stratum number % num_strata: num_strata samples in a row cover (0, 1) evenly.

    Depends on the sample number alone, so neither ranks nor accumulation change a sample's noise.
    """
    if num_strata < 1:
        raise UserError(f"num_strata: must be at least 1, got {num_strata}")
    return ((numbers % num_strata + u.double()) / num_strata).clamp(max=_LAST_UNIFORM)


def _on(device: torch.device, *tables: Tensor) -> list[Tensor]:
    """Tables of the processor's, on `device`, which nothing waits for."""
    return [table.to(device, non_blocking=True) for table in tables]


class LogNormal(NoiseDistribution):
    """ln(sigma) ~ N(mean, std^2); EDM on pixels has (-1.2, 1.2)."""

    def __init__(self, mean: float, std: float):
        if not std > 0:
            raise UserError(f"std: must be positive, got {std:g}")
        self.mean = mean
        self.std = std

    def cdf(self, sigma: Tensor) -> Tensor:
        return torch.special.ndtr((sigma.double().log() - self.mean) / self.std)

    def icdf(self, u: Tensor) -> Tensor:
        return (self.mean + self.std * torch.special.ndtri(u.double())).exp()


def logit_normal(mean: float = 0.0, std: float = 1.0, shift: float = 1.0) -> LogNormal:
    """Flow time t = sigmoid(N(mean, std^2)), shifted by `shift`: since sigma = t / (1 - t), a log-normal sigma."""
    if not shift > 0:
        raise UserError(f"shift: must be positive, got {shift:g}")
    return LogNormal(mean + math.log(shift), std)


class LogUniform(NoiseDistribution):
    """ln(sigma) uniform between ln(sigma_min) and ln(sigma_max)."""

    def __init__(self, sigma_min: float, sigma_max: float):
        if not 0 < sigma_min < sigma_max < math.inf:
            raise UserError(
                f"sigma_min, sigma_max: need 0 < sigma_min < sigma_max, got {sigma_min:g} and {sigma_max:g}"
            )
        self.sigma_min = sigma_min
        self.sigma_max = sigma_max

    def cdf(self, sigma: Tensor) -> Tensor:
        return ((sigma.double() / self.sigma_min).log() / math.log(self.sigma_max / self.sigma_min)).clamp(0, 1)

    def icdf(self, u: Tensor) -> Tensor:
        u = u.double()
        return self.sigma_min ** (1 - u) * self.sigma_max**u


class SamplerMatched(NoiseDistribution):
    """The levels that a sigma schedule visits: ln(sigma) uniform between neighbours, all steps equally likely.

    `sigmas` [num_steps + 1] decreases; the step down to 0, if the schedule ends there, has no levels between.
    """

    def __init__(self, sigmas: Tensor):
        self.levels = sigmas[sigmas > 0].flip(0).double()  # [K + 1], increasing
        if len(self.levels) < 2:
            raise UserError("noise=sampler_matched: needs a sigma schedule with two levels above 0; raise num_steps")
        self.cumulative = torch.linspace(0, 1, len(self.levels), dtype=torch.float64)

    def cdf(self, sigma: Tensor) -> Tensor:
        levels, cumulative = _on(sigma.device, self.levels, self.cumulative)
        sigma = sigma.double().clamp(levels[0], levels[-1])
        k = (torch.searchsorted(levels, sigma, right=True) - 1).clamp(max=len(levels) - 2)
        share = (sigma / levels[k]).log() / (levels[k + 1] / levels[k]).log()
        return torch.lerp(cumulative[k], cumulative[k + 1], share)

    def icdf(self, u: Tensor) -> Tensor:
        levels, cumulative = _on(u.device, self.levels, self.cumulative)
        k = (torch.searchsorted(cumulative, u.double(), right=True) - 1).clamp(0, len(levels) - 2)
        share = (u.double() - cumulative[k]) / (cumulative[k + 1] - cumulative[k])
        return levels[k] ** (1 - share) * levels[k + 1] ** share


class DiscreteNoise(NoiseDistribution):
    """Every step of a discrete schedule equally likely (DDPM): T atoms of mass 1 / T."""

    def __init__(self, schedule: schedules.Schedule):
        self.atoms = schedule.chain()
        num_atoms = len(self.atoms)
        self.cumulative = torch.arange(num_atoms + 1, dtype=torch.float64) / num_atoms  # [T + 1], 0 to 1

    def cdf(self, sigma: Tensor) -> Tensor:
        atoms, cumulative = _on(sigma.device, self.atoms, self.cumulative)
        return cumulative[torch.searchsorted(atoms, sigma.double(), right=True)]

    def icdf(self, u: Tensor) -> Tensor:
        # Searched in exactly the values that cdf returns: u * T would round across atoms.
        atoms, cumulative = _on(u.device, self.atoms, self.cumulative[1:])
        return atoms[torch.searchsorted(cumulative, u.double()).clamp(max=len(atoms) - 1)]

    def level_of(self, step: float) -> float:
        if step != int(step) or step > len(self.atoms):
            raise UserError(f"t={step:g}: a whole step, from 0 to {len(self.atoms)}")
        return math.inf if step == len(self.atoms) else self.atoms[int(step)].item()


def _strictly_inside(value: Tensor, low: Tensor, high: Tensor) -> Tensor:
    return value.clamp(torch.nextafter(low, high), torch.nextafter(high, low))


class Restricted(NoiseDistribution):
    """`noise` given that sigma lies in one of the half-open intervals [sigma_lo, sigma_hi), ascending and disjoint."""

    def __init__(self, noise: NoiseDistribution, intervals: Sequence[tuple[float, float]]):
        edges = torch.tensor(intervals, dtype=torch.float64).reshape(-1, 2)  # [K, 2]
        if not bool((edges[:, 0] < edges[:, 1]).all() and (edges[:-1, 1] <= edges[1:, 0]).all()):
            raise UserError(f"intervals: must be non-empty, ascending and disjoint in sigma, got {list(intervals)}")
        u = noise.below(edges)
        edges, u = edges[u[:, 0] < u[:, 1]], u[u[:, 0] < u[:, 1]]
        self.noise = noise
        self.sigma_lo, self.sigma_hi = edges.unbind(1)
        self.lower, self.upper = u.unbind(1)
        self.cumulative = torch.cat([u.new_zeros(1), (self.upper - self.lower).cumsum(0)])
        self.mass = self.cumulative[-1].item()
        if self.mass < MIN_MASS:
            raise UserError(
                f"expert: sigma in {list(intervals)} holds {self.mass:.2g} of the training noise, which is "
                f"{'empty' if self.mass == 0 else 'near-empty'}; choose a lower level, or another noise distribution"
            )

    def cdf(self, sigma: Tensor) -> Tensor:
        lower, upper = _on(sigma.device, self.lower, self.upper)
        inside = self.noise.cdf(sigma).unsqueeze(-1).clamp(lower, upper) - lower  # [..., K]
        return inside.sum(-1) / self.mass

    def icdf(self, u: Tensor) -> Tensor:
        tables = (self.cumulative, self.lower, self.upper, self.sigma_lo, self.sigma_hi)
        cumulative, lower, upper, sigma_lo, sigma_hi = _on(u.device, *tables)
        mass = u.double() * self.mass
        k = torch.searchsorted(cumulative[1:], mass).clamp(max=len(lower) - 1)
        # Strictly inside: the lower end belongs to the atom below, the upper end to the interval above.
        inner = _strictly_inside(lower[k] + (mass - cumulative[k]), lower[k], upper[k])
        # And icdf may round onto the end.
        return self.noise.icdf(inner).clamp(sigma_lo[k], torch.nextafter(sigma_hi[k], sigma_lo[k]))
