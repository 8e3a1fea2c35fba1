"""Denoising in overlapping windows, for maps larger than a network can take at once (arXiv:2112.10752, section 4.3.2).

A `Tiling` wraps a denoiser into one of the same signature, so that guidance, experts and samplers never know. Estimates
of x0 are averaged, which is linear: the same on noise, v or velocity. Decoding in tiles is first_stage/tiling.py.
"""

import math
from collections.abc import Callable
from itertools import product

import torch
from torch import Tensor

from ldm.diffusion.cond import Condition, check_maps, cut, cut_cond, on_latent
from ldm.diffusion.denoiser import ConditionalDenoise
from ldm.errors import UserError


class Tiling:
    """Square windows of `size`, about `stride` apart, both in positions of the latent; `num_parallel` in one call.

    `places(length, size, stride)` gives the first positions of the windows along a side, `window(height, width)` the
    weights within one, `rank(rows, columns)` the weights of the windows among each other. A side that is not longer
    than `size` has one window of its own length, and a map that fits in one is denoised whole.
    """

    def __init__(
        self,
        size: int,
        stride: int,
        places: Callable[[int, int, int], list[int]],
        window: Callable[[int, int], Tensor],
        rank: Callable[[int, int], Tensor] = torch.ones,
        num_parallel: int = 4,
    ):
        if not 1 <= stride <= size:
            raise UserError(f"tiling.size, tiling.stride: need 1 <= stride <= size, got {size} and {stride}")
        if num_parallel < 1:
            raise UserError(f"tiling.num_parallel={num_parallel}: must be at least 1")
        self.size = size
        self.stride = stride
        self.places = places
        self.window = window
        self.rank = rank
        self.num_parallel = num_parallel

    def starts(self, length: int) -> list[int]:
        """First positions of the windows along a side of `length`; ValueError if they do not cover it."""
        return self.places(length, self.size, self.stride) if length > self.size else [0]

    def __call__(self, denoiser: ConditionalDenoise) -> ConditionalDenoise:
        """`denoiser` for maps of any size; conditions that are maps are cut like x, the others hold in every window."""

        def tiled(x: Tensor, sigma: Tensor, cond: Condition) -> Tensor:
            if x.ndim != 4:
                raise UserError(f"tiling: cuts maps [B, C, H, W], and these latents are {list(x.shape)}; leave it out")
            rows, columns = self.starts(x.shape[-2]), self.starts(x.shape[-1])
            if len(rows) == len(columns) == 1:
                return denoiser(x, sigma, cond)
            check_maps(cond, x)
            cond = on_latent(cond, x)
            height, width = (min(self.size, side) for side in x.shape[-2:])
            window = self.window(height, width).to(x)
            ranks = self.rank(len(rows), len(columns)).flatten().tolist()
            areas = [(slice(top, top + height), slice(left, left + width)) for top, left in product(rows, columns)]
            total, weight = torch.zeros_like(x), x.new_zeros(x.shape[-2:])
            for first in range(0, len(areas), self.num_parallel):
                part = areas[first : first + self.num_parallel]
                estimates = denoiser(cut(x, part), sigma.repeat(len(part)), cut_cond(cond, part))
                for area, estimate, rank in zip(part, estimates.split(len(x)), ranks[first:], strict=False):
                    total[(..., *area)] += rank * window * estimate
                    weight[area] += rank * window
            return total / weight

        return tiled


def published(size: int = 128, stride: int = 64, tie_breaker: bool = False, num_parallel: int = 4) -> Tiling:
    """The public code's patch-wise sampling: weights grow with the distance to the border, clipped to [0.01, 0.5].

    `tie_breaker` weighs the windows among each other likewise. Sides must be `size` and a multiple of `stride`: where
    no window falls, the public code divides by 0.
    """
    rank = border_distance if tie_breaker else torch.ones
    return Tiling(size, stride, every_stride, border_distance, rank, num_parallel)


def blended(latent_size: int, size: int | None = None, stride: int | None = None, num_parallel: int = 4) -> Tiling:
    """Windows evenly spread from border to border, `stride` apart at most, with weights that vanish smoothly.

    `size` None is the side that the model was trained at, `latent_size`; `stride` None is half of the size.
    """
    size = latent_size if size is None else size
    stride = max(size // 2, 1) if stride is None else stride
    return Tiling(size, stride, evenly, raised_cosine, torch.ones, num_parallel)


def every_stride(length: int, size: int, stride: int) -> list[int]:
    """0, stride, 2 stride, ... Raises ValueError if the last window does not end at `length`."""
    left = (length - size) % stride
    if left:
        raise UserError(
            f"tiling.size={size}, tiling.stride={stride}: leave the last {left} of {length} positions uncovered; "
            "choose a size plus a multiple of the stride, or tiling=blended"
        )
    return list(range(0, length - size + 1, stride))


def evenly(length: int, size: int, stride: int) -> list[int]:
    """As few windows as `stride` allows, the first at 0, the last ending at `length`, evenly spread between."""
    gaps = math.ceil((length - size) / stride)
    return [round(place * (length - size) / max(gaps, 1)) for place in range(gaps + 1)]


def border_distance(height: int, width: int) -> Tensor:
    """[height, width]: the smallest distance to the four borders in parts of the side, clipped to [0.01, 0.5]."""
    sides = (torch.linspace(0, 1, side) for side in (height, width))
    down, across = (torch.minimum(places, 1 - places) for places in sides)
    return torch.minimum(down[:, None], across).clamp(0.01, 0.5)


def raised_cosine(height: int, width: int) -> Tensor:
    """[height, width]: sin^2(pi (i + 1/2) / height) sin^2(pi (j + 1/2) / width), positive everywhere."""
    down, across = ((torch.pi * (torch.arange(side) + 0.5) / side).sin().square() for side in (height, width))
    return torch.outer(down, across)
