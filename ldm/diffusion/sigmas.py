"""Sigma schedules: functions of num_steps giving [num_steps + 1] decreasing float64 levels; and the first noise.

They end in 0, save `ddim_sigmas`, which ends at its noise schedule's sigma(t = 0) as published. Training: noise.py.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ldm.diffusion.schedule import MAX_SIGMA, Schedule
from ldm.errors import UserError


def _check(num_steps: int, sigma_min: float, sigma_max: float) -> None:
    _check_num_steps(num_steps)
    if not 0 < sigma_min < sigma_max < math.inf:
        raise UserError(f"sigma_min, sigma_max: need 0 < sigma_min < sigma_max, got {sigma_min:g} and {sigma_max:g}")


def _check_num_steps(num_steps: int, limit: float = math.inf) -> None:
    if not 1 <= num_steps <= limit:
        raise UserError(f"num_steps: must lie in [1, {limit:g}], got {num_steps}")


def _between(first: float, inner: Tensor, last: float) -> Tensor:
    """inner [num_steps] with its ends exactly first and last (powers round), then 0."""
    inner = inner.clone()
    inner[-1] = last
    inner[0] = first
    return torch.cat([inner, inner.new_zeros(1)])


def karras(num_steps: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> Tensor:
    """Levels evenly spaced in sigma^(1/rho) (EDM, equation 5); eDiff-I: rho 6 (base) and 3 (super-resolution)."""
    _check(num_steps, sigma_min, sigma_max)
    if not rho > 0:
        raise UserError(f"rho: must be positive, got {rho:g}")
    roots = torch.linspace(sigma_max ** (1 / rho), sigma_min ** (1 / rho), num_steps, dtype=torch.float64)
    return _between(sigma_max, roots**rho, sigma_min)


def exponential(num_steps: int, sigma_min: float, sigma_max: float) -> Tensor:
    """Levels evenly spaced in ln(sigma)."""
    _check(num_steps, sigma_min, sigma_max)
    logs = torch.linspace(math.log(sigma_max), math.log(sigma_min), num_steps, dtype=torch.float64)
    return _between(sigma_max, logs.exp(), sigma_min)


def polynomial(num_steps: int, sigma_min: float, sigma_max: float, power: float = 1.0) -> Tensor:
    """ln(sigma) falls as a power of the step: 1 is `exponential`, above 1 dwells at low noise, below 1 at high."""
    _check(num_steps, sigma_min, sigma_max)
    if not power > 0:
        raise UserError(f"power: must be positive, got {power:g}")
    left = torch.linspace(1, 0, num_steps, dtype=torch.float64) ** power
    logs = left * (math.log(sigma_max) - math.log(sigma_min)) + math.log(sigma_min)
    return _between(sigma_max, logs.exp(), sigma_min)


def given(levels: Sequence[float]) -> Tensor:
    """The levels of a list, finite, strictly decreasing, none below 0; num_steps is their number less one."""
    sigmas = torch.tensor(list(levels), dtype=torch.float64)
    if len(sigmas) < 2 or not bool(sigmas.isfinite().all() and (sigmas.diff() < 0).all() and sigmas[-1] >= 0):
        raise UserError(f"sigmas.levels: two or more finite levels, strictly decreasing, none below 0; got {levels}")
    return sigmas


def ddim_sigmas(num_steps: int, schedule: Schedule) -> Tensor:
    """Steps floor(i T / num_steps) + 1, ending at step 0: the published DDIM spacing of latent diffusion.

    The published code rounds T / num_steps down first, then runs another number of steps; for divisors of T they agree.
    """
    chain = schedule.chain()
    _check_num_steps(num_steps, len(chain) - 1)
    steps = torch.arange(num_steps) * len(chain) // num_steps + 1
    return torch.cat([chain[steps].flip(0), chain[:1]])


def trailing(num_steps: int, schedule: Schedule) -> Tensor:
    """Evenly spaced steps from the last one down, then 0 (arXiv:2305.08891, Table 2); num_steps = T is DDPM's chain."""
    chain = schedule.chain()
    _check_num_steps(num_steps, len(chain))
    passed = torch.arange(num_steps, dtype=torch.float64) * len(chain) / num_steps
    steps = (len(chain) - passed).round().long() - 1
    return torch.cat([chain[steps], chain.new_zeros(1)])


def flow(num_steps: int, shift: float = 1.0) -> Tensor:
    """Flow time even from 1 to 0, shifted: sigma = shift t / (1 - t) (arXiv:2403.03206, equation 23)."""
    _check_num_steps(num_steps)
    if not (shift > 0 and shift * (num_steps - 1) < MAX_SIGMA):
        raise UserError(f"shift: must be positive and below {MAX_SIGMA:g} / (num_steps - 1), got {shift:g}")
    t = torch.linspace(1, 0, num_steps + 1, dtype=torch.float64)
    return (shift * t / (1 - t)).clamp(max=MAX_SIGMA)


def init_noise(n: Tensor, sigma_max: float, schedule: Schedule) -> Tensor:
    """The x that sampling starts from, from standard normal n [B, ...]: in the schedule's own scale it is pure noise.

    Variance preserving sqrt(1 + sigma^2) n, variance exploding sigma n, flow (1 + sigma) n.
    """
    return schedule.init_scale(float(sigma_max)) * n
