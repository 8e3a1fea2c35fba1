"""Samplers: pure functions `(denoise, x, sigmas, *, noise=None) -> x` of `denoise(x, sigma [B]) -> x0`.

They integrate dx/dsigma = (x - D(x, sigma)) / sigma (EDM, equation 3) down any decreasing sigmas; a last level of 0 is
reached by D itself. `noise(step) -> tensor like x` feeds the stochastic ones, the others ignore it. They know no
networks, conditions, guidance or experts. x keeps its scale x0 + sigma noise throughout, whatever the schedule.
`steps`, `estimate`, `move` and `ancestral` are what they are made of, and a new one may be.
"""

import itertools
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ldm.diffusion.denoiser import Denoise
from ldm.errors import UserError

Noise = Callable[[int], Tensor]


def steps(sigmas: Tensor) -> Iterator[tuple[float, float]]:
    """Pairs (sigma, next sigma) of a sigma schedule [n + 1], as exact Python floats.

    Raises ValueError unless it has two or more finite levels, strictly decreasing, none below 0.
    """
    levels = sigmas.tolist()
    falls = all(high > low for high, low in itertools.pairwise(levels))
    if len(levels) < 2 or not falls or levels[-1] < 0 or math.isinf(levels[0]):
        raise UserError(
            f"sigmas: a sigma schedule has two or more finite levels, strictly decreasing, none below 0; got {levels}"
        )
    return itertools.pairwise(levels)


def estimate(denoise: Denoise, x: Tensor, sigma: float) -> Tensor:
    """D(x, sigma), the estimate of x0 [B, ...], for x [B, ...] that is all at one level of noise."""
    return denoise(x, x.new_full((x.shape[0],), sigma))


def move(x0: Tensor, x: Tensor, ratio: float) -> Tensor:
    """x0 + ratio (x - x0): keeps x's noise direction at ratio times the level; exact at ratio 0 (x0) and 1 (x)."""
    return torch.lerp(x0, x, ratio)


def ancestral(sigma: float, sigma_next: float, eta: float) -> tuple[float, float]:
    """(level to go down to, standard deviation of the noise to add there) of a step from sigma to sigma_next.

    `eta` is the share of the posterior's standard deviation (arXiv:2010.02502, equation 16): 0 adds none, 1 is DDPM.
    """
    added = eta * sigma_next * math.sqrt(1 - (sigma_next / sigma) ** 2)
    return math.sqrt(sigma_next**2 - added**2), added


def check_eta(eta: float, noise: Noise | None) -> None:
    """Raises ValueError unless eta lies in [0, 1], and there is noise to draw where it is above 0."""
    if not 0 <= eta <= 1:
        raise UserError(f"eta: must lie in [0, 1], got {eta:g}")
    if eta > 0 and noise is None:
        raise UserError("noise: a stochastic sampler (eta > 0) needs noise(step); pass it, or choose eta 0")


@torch.no_grad()
def euler(denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise: Noise | None = None) -> Tensor:
    """Euler's method, order 1."""
    for sigma, sigma_next in steps(sigmas):
        x = move(estimate(denoise, x, sigma), x, sigma_next / sigma)
    return x


@torch.no_grad()
def ddim(denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise: Noise | None = None, eta: float = 0.0) -> Tensor:
    """DDIM (arXiv:2010.02502, equations 12 and 16), in sigma: eta 0 is Euler's method, eta 1 the posterior of DDPM."""
    check_eta(eta, noise)
    for step, (sigma, sigma_next) in enumerate(steps(sigmas)):
        kept, added = ancestral(sigma, sigma_next, eta)
        x = move(estimate(denoise, x, sigma), x, kept / sigma)
        if added > 0:
            x = x + added * noise(step)
    return x


def euler_ancestral(
    denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise: Noise | None = None, eta: float = 1.0
) -> Tensor:
    """Ancestral Euler, as it is known outside DDIM's literature: in sigma the two are the same step."""
    return ddim(denoise, x, sigmas, noise=noise, eta=eta)


def ddpm(denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise: Noise | None = None) -> Tensor:
    """DDPM's ancestral sampling with the posterior variance (arXiv:2006.11239, equation 7), on any sigma schedule."""
    return ddim(denoise, x, sigmas, noise=noise, eta=1.0)


@torch.no_grad()
def consistency(denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise: Noise | None = None) -> Tensor:
    """Multistep sampling of a consistency function (arXiv:2303.01469, Algorithm 1): D, then all of the noise anew.

    One step is D(x, sigmas[0]); of a denoiser, which is no such function, it does not draw the data's distribution.
    """
    for step, (sigma, sigma_next) in enumerate(steps(sigmas)):
        x = estimate(denoise, x, sigma)
        if sigma_next > 0:
            if noise is None:
                raise UserError("noise: a stochastic sampler of more than one step needs noise(step); pass it")
            x = x + sigma_next * noise(step)
    return x


@torch.no_grad()
def heun(denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise: Noise | None = None) -> Tensor:
    """Heun's method, order 2, two evaluations a step (EDM, Algorithm 1); Euler into 0."""
    for sigma, sigma_next in steps(sigmas):
        x0 = estimate(denoise, x, sigma)
        slope = (x - x0) / sigma
        x = move(x0, x, sigma_next / sigma)
        if sigma_next > 0:
            slope_next = (x - estimate(denoise, x, sigma_next)) / sigma_next
            x = x + (sigma_next - sigma) / 2 * (slope_next - slope)
    return x


@torch.no_grad()
def kutta3(denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise: Noise | None = None) -> Tensor:
    """Kutta's method in sigma: order 3, three evaluations, eDiff-I's "3-kutta" (arXiv:2204.13902); Euler into 0."""
    for sigma, sigma_next in steps(sigmas):
        x0 = estimate(denoise, x, sigma)
        if sigma_next == 0:
            return x0
        step, middle = sigma_next - sigma, (sigma + sigma_next) / 2
        slope_1 = (x - x0) / sigma
        x_2 = x + step / 2 * slope_1
        slope_2 = (x_2 - estimate(denoise, x_2, middle)) / middle
        x_3 = x + step * (2 * slope_2 - slope_1)
        slope_3 = (x_3 - estimate(denoise, x_3, sigma_next)) / sigma_next
        x = x + step / 6 * (slope_1 + 4 * slope_2 + slope_3)
    return x


@torch.no_grad()
def dpmpp_2m(denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise: Noise | None = None) -> Tensor:
    """DPM-Solver++(2M): order 2, one evaluation a step (arXiv:2211.01095, Algorithm 2); Euler first and into 0."""
    x0_before, width_before = None, None
    for sigma, sigma_next in steps(sigmas):
        x0 = estimate(denoise, x, sigma)
        if sigma_next == 0:
            return x0
        width = math.log(sigma / sigma_next)
        middle = x0
        if x0_before is not None:
            middle = x0 + width / (2 * width_before) * (x0 - x0_before)  # linear in ln(sigma), to the step's middle
        x = move(middle, x, sigma_next / sigma)
        x0_before, width_before = x0, width
    return x


@torch.no_grad()
def plms(denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise: Noise | None = None) -> Tensor:
    """Pseudo linear multistep (arXiv:2202.09778, equations 12 to 14), as published with latent diffusion: order 2.

    Adams-Bashforth on the noise estimate; the first step takes two evaluations, one into 0 is Euler's.
    """
    slopes: list[Tensor] = []  # newest first
    for sigma, sigma_next in steps(sigmas):
        x0 = estimate(denoise, x, sigma)
        if sigma_next == 0:
            return x0
        slopes = [(x - x0) / sigma, *slopes[:3]]
        if len(slopes) == 1:
            ahead = x + (sigma_next - sigma) * slopes[0]
            slope = (slopes[0] + (ahead - estimate(denoise, ahead, sigma_next)) / sigma_next) / 2
        else:
            slope = sum(weight * value for weight, value in zip(_ADAMS[len(slopes)], slopes, strict=True))  # type: ignore[assignment]  # of at least one slope
        x = x + (sigma_next - sigma) * slope
    return x


_ADAMS = {2: (3 / 2, -1 / 2), 3: (23 / 12, -16 / 12, 5 / 12), 4: (55 / 24, -59 / 24, 37 / 24, -9 / 24)}


@torch.no_grad()
def deis(denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise: Noise | None = None, order: int = 3) -> Tensor:
    """DEIS (arXiv:2204.13902, log-rho AB): the last noise estimates, as a polynomial in ln(sigma), integrated.

    One evaluation a step; as published, the first steps are of the order of the estimates there are, which limits the
    whole to order 2 in the end; one into 0 is Euler's. `order` is 1 to 4.
    """
    if not 1 <= order <= 4:
        raise UserError(f"order: DEIS has the orders 1 to 4, got {order}")
    slopes: list[Tensor] = []  # newest first
    levels: list[float] = []  # their logarithms
    for sigma, sigma_next in steps(sigmas):
        x0 = estimate(denoise, x, sigma)
        if sigma_next == 0:
            return x0
        slopes = [(x - x0) / sigma, *slopes[: order - 1]]
        levels = [math.log(sigma), *levels[: order - 1]]
        weights = _lagrange_integrals(levels, math.log(sigma), math.log(sigma_next))
        x = x + sum(weight * slope for weight, slope in zip(weights, slopes, strict=True))
    return x


def _lagrange_integrals(nodes: list[float], start: float, end: float) -> list[float]:
    """Integral over sigma, from e^start to e^end, of each Lagrange polynomial in ln(sigma) through `nodes`."""
    # Gauss-Legendre, its nodes from the eigenvalues of the Jacobi matrix (Golub, Welsch 1969).
    k = torch.arange(1, 12, dtype=torch.float64)
    off = k / (4 * k**2 - 1).sqrt()
    points, vectors = torch.linalg.eigh(torch.diag(off, 1) + torch.diag(off, -1))
    u = start + (end - start) * (points + 1) / 2
    weights = vectors[0].square() * (end - start) * u.exp()  # 2 v^2 (end - start) / 2, and d sigma = e^u du
    integrals = []
    for own in nodes:
        others = [other for other in nodes if other is not own]
        integrals.append((weights * math.prod([(u - other) / (own - other) for other in others])).sum().item())
    return integrals


def dpmpp_2s(denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise: Noise | None = None) -> Tensor:
    """DPM-Solver++(2S): order 2, single step, two evaluations (arXiv:2211.01095, Algorithm 1); Euler into 0."""
    return dpmpp_sde(denoise, x, sigmas, noise=noise, eta=0.0)


@torch.no_grad()
def dpmpp_sde(denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise: Noise | None = None, eta: float = 1.0) -> Tensor:
    """SDE-DPM-Solver++(2S): two evaluations a step and `eta` of the ancestral noise; Euler into 0.

    The noise of the half step and of the whole step are increments of one Brownian motion in sigma.
    """
    check_eta(eta, noise)
    for step, (sigma, sigma_next) in enumerate(steps(sigmas)):
        x0 = estimate(denoise, x, sigma)
        if sigma_next == 0:
            return x0
        middle = math.sqrt(sigma * sigma_next)
        kept, added = ancestral(sigma, middle, eta)
        half = move(x0, x, kept / sigma)
        if added > 0:
            first, second = noise(2 * step), noise(2 * step + 1)
            half = half + added * first
        x0 = estimate(denoise, half, middle)
        kept, added = ancestral(sigma, sigma_next, eta)
        x = move(x0, x, kept / sigma)
        if added > 0:
            early, late = (sigma - middle) / (sigma - sigma_next), (middle - sigma_next) / (sigma - sigma_next)
            x = x + added * (math.sqrt(early) * first + math.sqrt(late) * second)
    return x
