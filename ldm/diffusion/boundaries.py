"""Where the noise is cut, in the units that people give cuts in, as sigma.

The same cut from each: step t of a discrete chain of T steps has sigma of its t-th level, flow time is
sigma / (1 + sigma) (arXiv:2403.03206), and a quantile is the share of the training noise below.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch

from ldm.diffusion.noise import NoiseDistribution
from ldm.errors import UserError

Interval = tuple[float, float]


def quantile(noise: NoiseDistribution, share: float) -> float:
    """Sigma with `share`, in [0, 1], of the noise below: of 0 it is 0, and of 1 it is inf."""
    if share in (0, 1):
        return math.inf if share else 0.0
    # Just above the quantile: a discrete cut is the first atom of the higher side, not the last of the lower.
    u = torch.tensor(share, dtype=torch.float64)
    return noise.icdf(torch.nextafter(u, torch.ones_like(u))).item()


def equal_shares(noise: NoiseDistribution, count: int) -> list[Interval]:
    """`count` intervals of equally likely noise, lowest first; of a discrete one some may be empty."""
    return list(pairwise(quantile(noise, number / count) for number in range(count + 1)))


def _flow_time(noise: NoiseDistribution, time: float) -> float:
    return math.inf if time == 1 else time / (1 - time)


# By unit: sigma of a value, and the values that there are.
UNITS: dict[str, tuple[Callable[[NoiseDistribution, float], float], float]] = {
    "sigma": (lambda noise, sigma: float(sigma), math.inf),
    "t": (lambda noise, step: noise.level_of(step), math.inf),
    "flow_t": (_flow_time, 1),
    "quantile": (quantile, 1),
}


def check_interval(given: Mapping[str, Any], key: str) -> None:
    """Raises UserError naming `key` unless `given` is ``{UNIT: [low, high]}``; null is an open end."""
    if len(given) != 1 or next(iter(given)) not in UNITS:
        raise UserError(
            f"{key}: one of {', '.join(UNITS)} with its two ends, such as {{sigma: [0.5, null]}}, got {given}"
        )
    ((unit, ends),) = given.items()
    top = UNITS[unit][1]
    if not isinstance(ends, Sequence) or isinstance(ends, str) or len(ends) != 2 or not all(map(_is_end, ends)):
        raise UserError(f"{key}: {unit} takes two numbers, [low, high], null for an open end, got {ends}")
    low, high = (end if other is None else other for end, other in zip((0, top), ends, strict=True))
    if not 0 <= low < high <= top:
        within = f" to {top}" if top < math.inf else " on"
        raise UserError(f"{key}: {unit} goes from 0{within}, and low must be below high, got {ends}")


def _is_end(end: Any) -> bool:
    return end is None or (isinstance(end, int | float) and not isinstance(end, bool) and not math.isnan(end))


def interval_of(given: Mapping[str, Sequence[float | None]], noise: NoiseDistribution) -> Interval:
    """[sigma_lo, sigma_hi) of what `check_interval` let pass, for the unrestricted training noise.

    Raises UserError for steps of a noise that has none.
    """
    ((unit, (low, high)),) = given.items()
    sigma = UNITS[unit][0]
    return 0.0 if not low else sigma(noise, low), math.inf if high in (None, math.inf) else sigma(noise, high)
