"""Sampling settings, and the draw from noise to a latent; the denoiser comes with its conditions already bound."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ldm.diffusion.counter_random import Normal, normal
from ldm.diffusion.denoiser import ConditionalDenoise, Denoise
from ldm.diffusion.guidance import FieldGuidance, Guidance, ScaledGuidance
from ldm.diffusion.schedule import Schedule
from ldm.diffusion.sigmas import init_noise
from ldm.diffusion.tiles import Tiling
from ldm.errors import UserError


def unseen(name: str, images: Tensor) -> None:
    """`seen` of a Sampling where nobody looks."""


def unwatched(sigmas: Tensor, sigma: Tensor) -> None:
    """`evaluating` of a Sampling where nobody looks."""


@dataclass(frozen=True)
class Sampling:
    """A `sampler`, its `sigmas` [num_steps + 1], `guidance`, and the noise `schedule` that scales the first x.

    `loss_guidance` comes after `guidance`, in its order, each guiding what those before it made. `tiling` denoises in
    windows, None the whole latent at once; `painting` lets regions look at phrases. Conditions are those of
    `use_conditions`, None being all; see Conditioners.used. `together`: what guidance compares is evaluated in one
    batch. All noise is drawn by `normal`, as by that of
    counter_random. `chosen` has the parts of a tree that all this was built of. `later` are the samplings of the stages
    that go on from what this one draws, and `seen(name, images [B, 3, h, w])` is told of what each stage but the last
    has drawn. `evaluating(sigmas, sigma [B])` is told of each evaluation of the denoiser before it.
    """

    sampler: Callable[..., Tensor]
    sigmas: Tensor
    guidance: ScaledGuidance
    schedule: Schedule
    loss_guidance: tuple[FieldGuidance, ...] = ()
    tiling: Tiling | None = None
    painting: Callable[[ConditionalDenoise], ConditionalDenoise] | None = None
    use_conditions: tuple[str, ...] | None = None
    together: bool = False
    normal: Normal = normal
    chosen: Mapping[str, Any] = field(default_factory=dict)
    later: tuple["Sampling", ...] = ()
    seen: Callable[[str, Tensor], Any] = unseen
    evaluating: Callable[[Tensor, Tensor], Any] = unwatched

    @property
    def fields(self) -> set[str]:
        """What guidance reads of a batch beside the model's conditions."""
        return {name for guidance in self.loss_guidance for name in guidance.fields}

    @property
    def guidances(self) -> tuple[Guidance, ...]:
        """All of guidance, in its order."""
        return (self.guidance, *self.loss_guidance)

    def with_scale(self, scale: float) -> "Sampling":
        """The same with its guidance at `scale`."""
        return replace(self, guidance=self.guidance.with_scale(scale))


def levels_asked(sampler: Callable[..., Tensor], sigmas: Tensor) -> list[float]:
    """The levels of noise at which a sampler asks the denoiser, in order, between those of `sigmas` too."""
    found: list[float] = []

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        found.append(sigma.flatten()[0].item())
        return x

    x = torch.zeros(1, 1, 1, 1)
    sampler(denoise, x, sigmas.cpu(), noise=lambda step: x)
    return found


@dataclass(frozen=True)
class Start:
    """Where to begin in place of pure noise: at latents x0 [B, ...] under noise `sigma` (SDEdit, arXiv:2108.01073)."""

    x0: Tensor
    sigma: float


@dataclass(frozen=True)
class Known:
    """Latents x0 [B, ...] that are held where `mask` (bool, to be broadcast to x0) is false; the rest is drawn."""

    x0: Tensor
    mask: Tensor

    def hold(self, denoise: Denoise) -> Denoise:
        """`denoise` with x0 for its estimate where it is known: what stands there is then x0 + sigma n at every step of
        every sampler, since all are linear in x and the estimates.
        """
        return lambda x, sigma: self.put(denoise(x, sigma))

    def put(self, x: Tensor, noise: Tensor | float = 0.0) -> Tensor:
        """x with x0 + `noise` where it is known."""
        return torch.where(self.mask, x, self.x0 + noise)


@torch.no_grad()
def draw(
    denoise: Denoise,
    sampling: Sampling,
    shape: tuple[int, ...],
    numbers: Tensor,
    seed: int,
    start: Start | None = None,
    known: Known | None = None,
) -> Tensor:
    """Latents z [B, *shape] by the sampler and the sigmas of `sampling`; draws addressed by `seed` and `numbers` [B].

    From a `start` only the levels below its own are gone through. Raises ValueError for one outside the schedule.
    """

    def noise(step: int) -> Tensor:
        return sampling.normal(seed, "sampler noise", numbers, shape, stream=step)

    first, sigmas = sampling.normal(seed, "first noise", numbers, shape), sampling.sigmas
    if start is None:
        x = init_noise(first, sigmas[0].item(), sampling.schedule)
    else:
        sigmas = _begun(sigmas, start.sigma)
        x = start.x0 + start.sigma * first
    if known is not None:
        x, denoise = known.put(x, sigmas[0].item() * first), known.hold(denoise)

    def told(x: Tensor, sigma: Tensor) -> Tensor:
        sampling.evaluating(sigmas, sigma)
        return denoise(x, sigma)

    z = sampling.sampler(told, x, sigmas, noise=noise)
    z = z * sampling.schedule.scale(sigmas[-1].item())  # a published schedule stops above 0
    return z if known is None else known.put(z)


def _begun(sigmas: Tensor, sigma: float) -> Tensor:
    """The sigma schedule from `sigma` on."""
    if not sigmas[-1] < sigma <= sigmas[0]:
        ends = f"{sigmas[0]:g} down to {sigmas[-1]:g}"
        raise UserError(f"sigma={sigma:g}: the sigma schedule goes from {ends}; begin between")
    return torch.cat([sigmas.new_tensor([sigma]), sigmas[sigmas < sigma]])
