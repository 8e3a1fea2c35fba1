"""What each held-out sample of a batch costs a diffusion model, in nats: the parts of the bound, and the ODE's density.

A model of pixels is held to the images' 8 bit values, one of latents to the whitened latents, which are real numbers.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ldm.diffusion.counter_random import normal, uniform
from ldm.diffusion.denoiser import Denoise
from ldm.diffusion.likelihood import (
    Bound,
    chain_of,
    density,
    discretised_gaussian,
    gaussian,
    rademacher,
    variational_bound,
)
from ldm.drawer import Drawer
from ldm.first_stage.first_stage import moments_of
from ldm.images import to_uint8
from ldm.sampling import Sampling

# Tensors [B, ...] by name, float64: `index`, the parts of a Bound, and where the ODE is asked for "ode", "ode_error".
Costs = dict[str, Tensor]
PARTS = ("prior", "costs", "shares", "reconstruction", "errors", "seen")  # of a Bound, a row for each sample


def of_pixels(first_stage: nn.Module) -> bool:
    """Whether a model behind this first stage models the pixels themselves."""
    return first_stage.spec.fingerprint == "identity"  # type: ignore[union-attr]  # first stages have a spec


@dataclass(frozen=True)
class Meter:
    """Measures batches under one `model` and `first_stage`; the keys are those of conf/likelihood.yaml."""

    model: Drawer
    first_stage: nn.Module
    sampling: Sampling
    num_timesteps: int
    num_levels: int | None
    ode: bool
    num_probes: int
    tolerance: float
    decode: bool
    seed: int

    @property
    def chain(self) -> Tensor:
        """sigma [T] of the bound, increasing; its ends are those of the ODE too."""
        return chain_of(self.sampling.schedule, self.num_timesteps)

    def __call__(self, batch: Mapping[str, Any]) -> Costs:
        """Of a batch with its tensors on the model's device; all draws are addressed by its `index`."""
        denoise = self.model.guided(self.sampling, dict(batch), len(batch["index"]))
        levels = to_uint8(batch["image"]).float() / 127.5 - 1 if of_pixels(self.first_stage) else None
        x0 = self._latents(batch) if levels is None else self.first_stage.encode(levels)
        costs = {"index": batch["index"], **self._bound(denoise, x0, levels, batch)}
        if self.ode:
            costs |= self._density(denoise, x0, levels, batch["index"])
        return {name: value.cpu() for name, value in costs.items()}

    def _bound(self, denoise: Denoise, x0: Tensor, levels: Tensor | None, batch: Mapping[str, Any]) -> Costs:
        """`levels` are the 8 bit pixels of x0, None of latents."""

        def reconstruction(estimate: Tensor, sigma: float) -> Tensor:
            if levels is None:
                return gaussian(x0, estimate, sigma)
            return discretised_gaussian(levels, self.first_stage.decode(estimate), sigma * self.first_stage.std)

        def grey_error(estimate: Tensor) -> Tensor:
            difference = self.first_stage.decode(estimate).clamp(-1, 1) - batch["image"]
            return (127.5 * difference).double().square().flatten(1).mean(1)

        bound = variational_bound(
            denoise, x0, self.chain, self._prior_std, reconstruction, self.seed, batch["index"], self.num_levels,
            grey_error if self.shows_pixels else None,
        )  # fmt: skip
        return {name: getattr(bound, name) for name in PARTS}

    def _density(self, denoise: Denoise, x0: Tensor, levels: Tensor | None, numbers: Tensor) -> Costs:
        size, shape, offset = math.prod(x0.shape[1:]), tuple(x0.shape[1:]), 0.0
        if levels is not None:  # a bin is 1 / 127.5 wide, and the density that of whitened pixels
            share = uniform(self.seed, "dequantisation", numbers, size).reshape(levels.shape).to(levels)
            x0 = self.first_stage.encode(levels + (share - 0.5) / 127.5)
            offset = size * (math.log(127.5) + self.first_stage.std.double().log().mean().item())
        probes = torch.stack([rademacher(self.seed, numbers, shape, stream) for stream in range(self.num_probes)])
        lowest, highest = self.chain[0].item(), self.chain[-1].item()
        tolerance = self.tolerance * size * math.log(2)
        found = density(denoise, x0, lowest, highest, self._prior_std, probes, tolerance)
        return {"ode": found.nats + offset, "ode_error": found.error, "ode_steps": found.num_steps}

    @property
    def _prior_std(self) -> float:
        """Of what sampling begins with, at the highest noise."""
        return self.sampling.schedule.init_scale(self.chain[-1].item())

    @property
    def shows_pixels(self) -> bool:
        """Whether estimates are compared with the image, and not with the latent alone."""
        return self.decode or of_pixels(self.first_stage)

    def bound(self, costs: Costs, size: int, sigmas: Tensor) -> Bound:
        """The Bound of these samples, of `size` numbers each, at the levels `sigmas`."""
        return Bound(size=size, sigmas=sigmas, **{name: costs[name] for name in PARTS})

    def _latents(self, batch: Mapping[str, Any]) -> Tensor:
        """Whitened latents [B, ...], each a draw from its posterior, the same as of a validation pass in training."""
        moments = moments_of(self.first_stage, batch)
        shape = self.first_stage.spec.shape(moments.shape[2:])
        return self.first_stage.sample(moments, normal(self.seed, "validation posterior", batch["index"], shape))
