"""Noise schedules: time t in [0, 1] <-> sigma, where x = x0 + sigma * noise whatever the schedule.

A schedule also knows how the network is told sigma (c_noise), how much noise its sampling starts from, and its scale.
Integer timesteps live here and nowhere else (DDPM, arXiv:2006.11239). Training noise: noise.py; sampling: sigmas.py.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from ldm.errors import UserError

# Stands for an infinite sigma (flow at t = 1, zero terminal SNR): x is noise to 1 part in 10^4, and fp32 still copes.
MAX_SIGMA = 1e4
# From here on a level of a chain counts as infinite: fp32 keeps nothing of x0 there. Cosine chains end at 2e4 to 2e5.
PURE_NOISE = 1e6
# A model is told sigma in fp32, relative to which this is twice the rounding: so near to a step it is that step.
ROUNDING = 2.0**-23


class Schedule(ABC):
    """A noise schedule: sigma of time. `is_pure_noise` says that sigma(t = 1) stands for infinity."""

    is_pure_noise: bool

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Noise level at schedule time t in [0, 1], float64, increasing."""

    @abstractmethod
    def t(self, sigma: Tensor) -> Tensor:
        """Schedule time in [0, 1], float64: the inverse of `sigma`."""

    @abstractmethod
    def c_noise(self, sigma: Tensor) -> Tensor:
        """What the network is told of sigma [B], in the dtype of sigma."""

    @abstractmethod
    def init_scale(self, sigma: float) -> float:
        """Factor on standard normal noise that starts sampling at sigma."""

    @abstractmethod
    def scale(self, sigma: float) -> float:
        """The schedule's own x over ours, x0 + sigma noise: 1 at sigma 0."""

    @abstractmethod
    def chain(self) -> Tensor:
        """Sigma of each step [T], float64, increasing. Raises ValueError for a schedule that has no steps."""


def _no_chain(name: str) -> ValueError:
    return UserError(
        f"schedule={name}: has no steps; sigmas=ddim, sigmas=trailing and noise=discrete need a chain of them, "
        "as schedule=scaled_linear is"
    )


def _check_t(t: Tensor) -> Tensor:
    t = t.double()
    if not bool(((t >= 0) & (t <= 1)).all()):
        raise UserError(f"t: schedule time lies in [0, 1], got {t.min().item():g} to {t.max().item():g}")
    return t


def _check_sigma(sigma: Tensor, sigma_min: float, sigma_max: float) -> Tensor:
    sigma = sigma.double()
    if not bool(((sigma >= sigma_min) & (sigma <= sigma_max)).all()):
        raise UserError(
            f"sigma: this schedule spans {sigma_min:g} to {sigma_max:g}, got {sigma.min().item():g} to "
            f"{sigma.max().item():g}; choose sigma_min and sigma_max inside the span, or another schedule"
        )
    return sigma


class Discrete(Schedule):
    """A variance-preserving chain of T steps with sigma = sqrt((1 - alpha_bar) / alpha_bar); alpha_bar [T] decreasing.

    `sigmas` [T] is float64. A sigma that fp32 has rounded maps back to its step exactly.
    """

    def __init__(self, alpha_bar: Tensor):
        sigmas = (1 / alpha_bar.double() - 1).sqrt()
        self.is_pure_noise = bool(sigmas[-1] >= PURE_NOISE)
        self.sigmas = sigmas.where(sigmas < PURE_NOISE, MAX_SIGMA)
        if len(sigmas) < 2 or not bool((self.sigmas.float().diff() > 0).all() and self.sigmas[0] > 0):
            raise UserError(
                "schedule: needs at least two steps whose noise strictly increases from above 0; check betas"
            )
        self.num_timesteps = len(sigmas)
        self._tables = {self.sigmas.device: self.sigmas}  # one copy per device, so that c_noise costs no transfer

    def sigma(self, t: Tensor) -> Tensor:
        step = _check_t(t) * (self.num_timesteps - 1)
        below = step.floor().clamp(max=self.num_timesteps - 2)
        low, high = self._neighbours(below.long())
        return torch.where(step == below + 1, high, low * (high / low) ** (step - below))  # both ends exact

    def t(self, sigma: Tensor) -> Tensor:
        _check_sigma(sigma, self.sigmas[0].item() * (1 - ROUNDING), self.sigmas[-1].item() * (1 + ROUNDING))
        return self.timestep(sigma) / (self.num_timesteps - 1)

    def timestep(self, sigma: Tensor) -> Tensor:
        """Step index in [0, T - 1], float64, linear in ln(sigma) between steps; clamped outside the table."""
        sigma = sigma.double()
        below = torch.searchsorted(self._table(sigma.device), sigma * (1 + ROUNDING), right=True) - 1
        below = below.clamp(0, self.num_timesteps - 2)
        low, high = self._neighbours(below)
        part = ((sigma / low).log() / (high / low).log()).clamp(0, 1)
        part = part.where(sigma > low * (1 + ROUNDING), 0.0)
        return below + part.where(sigma < high * (1 - ROUNDING), 1.0)

    def c_noise(self, sigma: Tensor) -> Tensor:
        return self.timestep(sigma).to(sigma.dtype)

    def init_scale(self, sigma: float) -> float:
        return (1 + sigma**2) ** 0.5

    def scale(self, sigma: float) -> float:
        return (1 + sigma**2) ** -0.5

    def chain(self) -> Tensor:
        return self.sigmas

    def _table(self, device: torch.device) -> Tensor:
        if device not in self._tables:
            self._tables[device] = self.sigmas.to(device)
        return self._tables[device]

    def _neighbours(self, below: Tensor) -> tuple[Tensor, Tensor]:
        table = self._table(below.device)
        return table[below], table[below + 1]


def _discrete(betas: Tensor, zero_terminal_snr: bool) -> Discrete:
    if not bool(((betas > 0) & (betas < 1)).all()):
        raise UserError("beta_start, beta_end, max_beta, betas: every beta must lie between 0 and 1, ends excluded")
    root = (1 - betas).cumprod(0).sqrt()
    if zero_terminal_snr:  # arXiv:2305.08891, Algorithm 1
        root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    return Discrete(root**2)


def scaled_linear(
    beta_start: float, beta_end: float, num_timesteps: int = 1000, zero_terminal_snr: bool = False
) -> Discrete:
    """Betas linear in sqrt(beta): the schedule of latent diffusion and Stable Diffusion, there called "linear"."""
    betas = torch.linspace(beta_start**0.5, beta_end**0.5, num_timesteps, dtype=torch.float64) ** 2
    return _discrete(betas, zero_terminal_snr)


def linear(
    beta_start: float = 1e-4, beta_end: float = 0.02, num_timesteps: int = 1000, zero_terminal_snr: bool = False
) -> Discrete:
    """Betas linear in the step (DDPM, section 4); in the public code of latent diffusion called "sqrt_linear"."""
    return _discrete(torch.linspace(beta_start, beta_end, num_timesteps, dtype=torch.float64), zero_terminal_snr)


def sqrt(beta_start: float, beta_end: float, num_timesteps: int = 1000, zero_terminal_snr: bool = False) -> Discrete:
    """Betas the square roots of numbers linear in the step: "sqrt" in the public code of latent diffusion."""
    squares = torch.linspace(beta_start, beta_end, num_timesteps, dtype=torch.float64)
    return _discrete(squares**0.5, zero_terminal_snr)


def given(betas: Sequence[float], zero_terminal_snr: bool = False) -> Discrete:
    """The betas of a list, one for each step."""
    return _discrete(torch.tensor(list(betas), dtype=torch.float64), zero_terminal_snr)


def cosine(num_timesteps: int = 1000, offset: float = 0.008, max_beta: float = 0.999) -> Discrete:
    """alpha_bar = cos^2(pi/2 (t + offset) / (1 + offset)), betas capped (arXiv:2102.09672, equation 17)."""
    return _discrete(cosine_betas(num_timesteps, offset, max_beta), zero_terminal_snr=False)


def cosine_betas(num_timesteps: int = 1000, offset: float = 0.008, max_beta: float = 0.999) -> Tensor:
    """The betas [T] of `cosine`, float64."""
    t = torch.linspace(0, 1, num_timesteps + 1, dtype=torch.float64)
    alpha_bar = ((t + offset) / (1 + offset) * torch.pi / 2).cos() ** 2
    return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=max_beta)


class VE(Schedule):
    """The variance-exploding process (arXiv:2011.13456): sigma geometric in t, c_noise = c_noise_scale * ln(sigma).

    EDM (arXiv:2206.00364) has c_noise_scale 0.25, eDiff-I 1.
    """

    is_pure_noise = False

    def __init__(self, sigma_min: float = 0.002, sigma_max: float = 80.0, c_noise_scale: float = 0.25):
        if not 0 < sigma_min < sigma_max:
            raise UserError(
                f"sigma_min, sigma_max: need 0 < sigma_min < sigma_max, got {sigma_min:g} and {sigma_max:g}"
            )
        self.sigma_min = sigma_min
        self.sigma_max = sigma_max
        self.c_noise_scale = c_noise_scale

    def sigma(self, t: Tensor) -> Tensor:
        t = _check_t(t)
        return self.sigma_min ** (1 - t) * self.sigma_max**t

    def t(self, sigma: Tensor) -> Tensor:
        sigma = _check_sigma(sigma, self.sigma_min, self.sigma_max)
        span = torch.tensor(self.sigma_max / self.sigma_min, dtype=torch.float64, device=sigma.device)
        return (sigma / self.sigma_min).log() / span.log()

    def c_noise(self, sigma: Tensor) -> Tensor:
        return self.c_noise_scale * sigma.log()

    def init_scale(self, sigma: float) -> float:
        return sigma

    def scale(self, sigma: float) -> float:
        return 1.0

    def chain(self) -> Tensor:
        raise _no_chain("edm")


class Flow(Schedule):
    """Rectified flow (1 - t) x0 + t noise, i.e. sigma = t / (1 - t) (arXiv:2209.03003); c_noise = c_noise_scale * t.

    The inverse holds up to sigma = MAX_SIGMA, t = 0.9999. A time shift by k is sigma * k: see sigmas.py and noise.py.
    """

    is_pure_noise = True

    def __init__(self, c_noise_scale: float = 1000.0):
        self.c_noise_scale = c_noise_scale

    def sigma(self, t: Tensor) -> Tensor:
        t = _check_t(t)
        return (t / (1 - t)).clamp(max=MAX_SIGMA)

    def t(self, sigma: Tensor) -> Tensor:
        sigma = _check_sigma(sigma, 0.0, MAX_SIGMA)
        return sigma / (1 + sigma)

    def c_noise(self, sigma: Tensor) -> Tensor:
        return self.c_noise_scale * sigma / (1 + sigma)

    def init_scale(self, sigma: float) -> float:
        return 1 + sigma

    def scale(self, sigma: float) -> float:
        return 1 / (1 + sigma)

    def chain(self) -> Tensor:
        raise _no_chain("flow")
