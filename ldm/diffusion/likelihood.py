"""Likelihood of data under a denoiser, whatever its parametrisation: the variational bound, and the density by the ODE.

The bound is that of a chain of Gaussian steps (DDPM, arXiv:2006.11239), written in sigma (VDM, arXiv:2107.00630,
equation 13); the density is the probability-flow ODE's (arXiv:2011.13456, appendix D.2). All is in nats a sample.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.diffusion.counter_random import normal, uniform
from ldm.diffusion.denoiser import Denoise, expand
from ldm.diffusion.schedule import Schedule
from ldm.errors import UserError

# (estimate of x0 [B, ...], sigma) -> a number for each sample [B].
OfEstimate = Callable[[Tensor, float], Tensor]


def chain_of(schedule: Schedule, num_timesteps: int) -> Tensor:
    """sigma [T], float64, increasing: steps evenly in the schedule's time, those of a discrete one if T is its own.

    A level of 0, where flow begins, is left out. Raises ValueError for fewer than two levels above 0.
    """
    sigmas = schedule.sigma(torch.linspace(0, 1, num_timesteps, dtype=torch.float64))
    sigmas = sigmas[sigmas > 0]
    if len(sigmas) < 2:
        raise UserError(f"num_timesteps={num_timesteps}: a chain needs two levels of noise, or more")
    return sigmas


def gaussian(x0: Tensor, mean: Tensor | float, std: float) -> Tensor:
    """-log N(x0; mean, std^2) of real numbers x0 [B, ...] -> nats [B], float64."""
    error = (x0 - mean).double().flatten(1) / std
    return 0.5 * (error.square() + math.log(2 * math.pi * std**2)).sum(1)


def discretised_gaussian(pixels: Tensor, estimate: Tensor, sigma: Tensor | float) -> Tensor:
    """-log of a Gaussian's mass in the bin of each 8 bit pixel (DDPM, equation 13) -> nats [B], float64.

    pixels [B, ...] are k / 127.5 - 1 of k = 0 ... 255, and their bins reach half way to the next, those at the ends to
    infinity. `sigma` is a number, or one that meets `pixels`.
    """
    pixels, estimate = ((pixels.double() + 1) * 127.5).round() / 127.5 - 1, estimate.double()
    half = 1 / 255
    low = (pixels - half - estimate).where(pixels > -1 + half, -math.inf) / sigma
    high = (pixels + half - estimate).where(pixels < 1 - half, math.inf) / sigma
    above = low + high > 0  # there the other tail has the digits
    low, high = (-high).where(above, low), (-low).where(above, high)
    log_low, log_high = torch.special.log_ndtr(low), torch.special.log_ndtr(high)
    return -(log_high + torch.log1p(-(log_low - log_high).exp())).flatten(1).sum(1)


def prior_kl(x0: Tensor, sigma: float, prior_std: float) -> Tensor:
    """KL of x0 [B, ...] under noise `sigma` from what sampling begins with, N(0, prior_std^2) -> nats [B], float64."""
    x0 = x0.double().flatten(1)
    return 0.5 * ((sigma**2 + x0**2) / prior_std**2 - 1 + 2 * math.log(prior_std / sigma)).sum(1)


@dataclass(frozen=True)
class Bound:
    """The parts of the bound on -log p(x0) of samples [B], in nats and float64.

    `sigmas` [K] are the levels that the steps of the chain were looked at, lowest first. A step from sigma_t down to
    sigma_s with D for x0 and the posterior's variance costs size / 2 of its `costs` [B, K],
    (sigma_s^-2 - sigma_t^-2) times the mean square of D - x0 (VDM, equation 13), each for `shares` [B, K] such steps.
    `errors` [B, K] are the mean squares, `seen` [B, K] what else was looked at.
    """

    size: int  # numbers in a sample
    prior: Tensor
    costs: Tensor
    shares: Tensor
    reconstruction: Tensor
    sigmas: Tensor
    errors: Tensor
    seen: Tensor

    def steps(self, spread: Tensor | None = None) -> Tensor:
        """Nats [B, K] of the steps whose variance is 1 + `spread` [K] times the posterior's; None is 0, as in DDPM.

        The divergence of two Gaussians, of which the posterior is the first.
        """
        spread = self.costs.new_zeros(self.costs.shape[1]) if spread is None else spread
        return self.shares * self.size / 2 * ((self.costs - spread) / (1 + spread) + spread.log1p())

    def best_spread(self) -> Tensor:
        """The `spread` [K] of the least mean over these samples (Analytic-DPM, arXiv:2201.06503, equation 8).

        One number a level, of all samples: what it is fitted to hardly matters from a few samples on.
        """
        return (self.shares * self.costs).sum(0) / self.shares.sum(0)

    def nats(self, spread: Tensor | None = None) -> Tensor:
        """The bound [B]."""
        return self.prior + self.steps(spread).sum(1) + self.reconstruction


@torch.no_grad()
def variational_bound(
    denoise: Denoise,
    x0: Tensor,
    chain: Tensor,
    prior_std: float,
    reconstruction: OfEstimate,
    seed: int,
    numbers: Tensor,
    num_levels: int | None = None,
    see: Callable[[Tensor], Tensor] | None = None,
) -> Bound:
    """The bound of x0 [B, ...] under a `chain` [T] of noise; every draw is addressed by `seed` and `numbers` [B].

    All of its T - 1 steps are taken, or an unbiased estimate of their sum from `num_levels`, one in each of as many
    parts of equal width in ln(sigma). `reconstruction` is the cost of x0 given D at the lowest level; `see` is shown
    every other D, for a number [B] of it.
    """
    parts = []
    for number, (sigma, weight, share) in enumerate(_levels(chain, seed, numbers, num_levels)):
        estimate = denoise(*_noisy(x0, sigma, seed, numbers, number))
        error = (estimate - x0).double().square().flatten(1).mean(1)
        shown = torch.zeros_like(error) if see is None else see(estimate).double()
        parts.append((weight * error, share, error, shown))
    costs, shares, errors, seen = (torch.stack(part, 1) for part in zip(*parts, strict=True))
    lowest, highest = chain[0].item(), chain[-1].item()
    estimate = denoise(*_noisy(x0, chain[:1].to(x0.device).expand(len(x0)), seed, numbers, len(parts)))
    return Bound(
        size=math.prod(x0.shape[1:]),
        prior=prior_kl(x0, highest, prior_std),
        costs=costs,
        shares=shares,
        reconstruction=reconstruction(estimate, lowest).double(),
        sigmas=middles(chain, num_levels),
        errors=errors,
        seen=seen,
    )


def middles(chain: Tensor, num_levels: int | None) -> Tensor:
    """sigma [K] that the levels of `variational_bound` stand for: those of the `chain`, or the middles of its parts."""
    if num_levels is None:
        return chain[1:]
    shares = (torch.arange(num_levels, dtype=torch.float64) + 0.5) / num_levels
    return chain[0] ** (1 - shares) * chain[-1] ** shares


def _levels(
    chain: Tensor, seed: int, numbers: Tensor, num_levels: int | None
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """sigma, sigma_s^-2 - sigma^-2 of the step down from it, and how many steps it stands for; [B], lowest first."""
    chain = chain.to(numbers.device)
    weight = chain[:-1] ** -2 - chain[1:] ** -2
    if num_levels is None:
        for sigma, own in zip(chain[1:], weight, strict=True):
            yield sigma.expand(len(numbers)), own.expand(len(numbers)), torch.ones_like(numbers, dtype=torch.float64)
        return
    width = chain.log().diff() / (chain[-1] / chain[0]).log()
    ends = width.cumsum(0)
    for level in range(num_levels):
        u = (level + uniform(seed, "likelihood level", numbers, stream=level)[:, 0]) / num_levels
        step = torch.searchsorted(ends, u).clamp(max=len(ends) - 1)
        yield chain[step + 1], weight[step], 1 / (width[step] * num_levels)


def _noisy(x0: Tensor, sigma: Tensor, seed: int, numbers: Tensor, stream: int) -> tuple[Tensor, Tensor]:
    """x0 under noise, and sigma [B], in float32."""
    sigma = sigma.to(x0)
    return x0 + expand(sigma, x0) * normal(seed, "likelihood noise", numbers, x0.shape[1:], stream=stream), sigma


def rademacher(seed: int, numbers: Tensor, shape: tuple[int, ...], stream: int = 0) -> Tensor:
    """Signs [B, *shape], float32, of mean 0 and variance 1, for Hutchinson's estimate."""
    u = uniform(seed, "likelihood probe", numbers, math.prod(shape), stream)
    return torch.where(u < 0.5, -1.0, 1.0).reshape(-1, *shape).float()


def ode_nats(
    denoise: Denoise, x0: Tensor, sigma_min: float, sigma_max: float, prior_std: float, probes: Tensor, num_steps: int
) -> Tensor:
    """-log p(x0) [B] of the data under noise `sigma_min`, by the probability-flow ODE up to `sigma_max`; float64.

    By Heun's method in `num_steps` equal steps of ln(sigma). In y = x / sqrt(1 + sigma^2), whose size stays that of
    whitened data, the divergence is d / (1 + sigma^2) - tr dD/dx, and the trace is v dD/dx v averaged over `probes`
    [P, B, ...] (Hutchinson's estimate). `denoise` must be differentiable in x.
    """
    levels = torch.linspace(math.log(sigma_min), math.log(sigma_max), num_steps + 1, dtype=torch.float64).exp().tolist()
    step = math.log(sigma_max / sigma_min) / num_steps
    y = x0 / math.sqrt(1 + sigma_min**2)
    total = x0.new_zeros(len(x0), dtype=torch.float64)
    for sigma, sigma_next in itertools.pairwise(levels):
        slope, divergence = _flow(denoise, y, sigma, probes)
        ahead, at_end = _flow(denoise, y + step * slope, sigma_next, probes)
        y = y + step / 2 * (slope + ahead)
        total += step / 2 * (divergence + at_end)
    end = gaussian(y, 0.0, prior_std / math.sqrt(1 + sigma_max**2))
    return end - total + math.prod(x0.shape[1:]) / 2 * math.log(1 + sigma_min**2)


def _flow(denoise: Denoise, y: Tensor, sigma: float, probes: Tensor) -> tuple[Tensor, Tensor]:
    """dy / d ln(sigma), and its divergence [B] in float64."""
    norm = math.sqrt(1 + sigma**2)
    with torch.enable_grad():
        x = (norm * y).detach().requires_grad_()
        estimate = denoise(x, x.new_full((len(x),), sigma))
        last = len(probes) - 1
        products = [
            (probe * torch.autograd.grad(estimate, x, probe, retain_graph=place < last)[0]).double().flatten(1).sum(1)
            for place, probe in enumerate(probes)
        ]
    slope = y / norm**2 - estimate.detach() / norm
    return slope, math.prod(y.shape[1:]) / norm**2 - torch.stack(products).mean(0)


@dataclass(frozen=True)
class Density:
    """-log p(x0) [B] in nats, float64, how far two solutions of it were apart, and in how many steps each was found."""

    nats: Tensor
    error: Tensor
    num_steps: Tensor


def density(
    denoise: Denoise,
    x0: Tensor,
    sigma_min: float,
    sigma_max: float,
    prior_std: float,
    probes: Tensor,
    tolerance: float,
    num_steps: int = 16,
    max_steps: int = 1024,
) -> Density:
    """`ode_nats` in as many steps as it takes: doubled until two solutions of a sample differ by no more than
    `tolerance`, nats. A sample's result does not depend on the others; where `max_steps` are too few, `error` says so.
    """
    coarse = ode_nats(denoise, x0, sigma_min, sigma_max, prior_std, probes, num_steps)
    found, error = coarse, torch.full_like(coarse, math.inf)
    steps = torch.full_like(coarse, num_steps, dtype=torch.int64)
    while num_steps < max_steps and bool((error > tolerance).any()):
        num_steps *= 2
        fine = ode_nats(denoise, x0, sigma_min, sigma_max, prior_std, probes, num_steps)
        going = error > tolerance
        found, error = fine.where(going, found), (fine - coarse).abs().where(going, error)
        steps = torch.full_like(steps, num_steps).where(going, steps)
        coarse = fine
    return Density(found, error, steps)
