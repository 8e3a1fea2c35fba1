"""How strongly painted phrases weigh: eDiff-I's formula and those of its public re-implementations (conf/painting)."""

import math
from functools import partial

from ldm.diffusion.denoiser import ConditionalDenoise
from ldm.diffusion.painting import painted
from ldm.errors import UserError
from ldm.networks.bias import Bias, Unit, largest_of_batch, largest_of_head, largest_of_sample, spread_of_sample


class Painting:
    """Wraps a denoiser to look at what is painted with w = `scale` log(1 + sigma), in a `unit` of its layers' q.k.

    With `squared_sigma` by log(1 + sigma^2). Scale 0 is the plain sample, bit for bit. Raises UserError for a scale
    that is not finite or is negative.
    """

    def __init__(self, scale: float, squared_sigma: bool, unit: Unit):
        if not (math.isfinite(scale) and scale >= 0):
            raise UserError(
                f"painting.scale={scale:g}: must be a number from 0 on; a phrase is kept out by its strength"
            )
        self.scale = scale
        self.squared_sigma = squared_sigma
        self.unit = unit

    def __call__(self, denoiser: ConditionalDenoise) -> ConditionalDenoise:
        """`denoiser` whose cond["tokens_bias"] are regions."""
        return painted(denoiser, self.scale, self.squared_sigma, partial(Bias, unit=self.unit))


def per_sample(scale: float = 0.4, squared_sigma: bool = False) -> Painting:
    """In units of each sample's largest q.k: eDiff-I's, with the maximum that leaves samples independent."""
    return Painting(scale, squared_sigma, largest_of_sample)


def per_head(scale: float = 0.4, squared_sigma: bool = False) -> Painting:
    """In units of the largest q.k of each head of each sample."""
    return Painting(scale, squared_sigma, largest_of_head)


def whole_tensor(scale: float = 0.4, squared_sigma: bool = False) -> Painting:
    """In units of the largest q.k of all that is drawn at once, as public code has it: images depend on their batch."""
    return Painting(scale, squared_sigma, largest_of_batch)


def std(scale: float = 0.4, squared_sigma: bool = True) -> Painting:
    """In units of the standard deviation of each sample's q.k, by log(1 + sigma^2): better for Stable Diffusion."""
    return Painting(scale, squared_sigma, spread_of_sample)
