"""Paint-with-words (eDiff-I, arXiv:2211.01324, section 4.3): regions of the image that attend to chosen tokens.

A wrapper of a denoiser, of an ensemble or a tiled one too. The conditioner tells which tokens a phrase has.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ldm.diffusion.cond import Condition
from ldm.diffusion.denoiser import ConditionalDenoise, expand


def as_it_is(bias: Tensor) -> Tensor:
    """In units of each sample's largest q.k, which is what a network takes a plain tensor for."""
    return bias


def painted(
    denoiser: ConditionalDenoise,
    scale: float,
    squared_sigma: bool = False,
    in_units: Callable[[Tensor], Any] = as_it_is,
) -> ConditionalDenoise:
    """`denoiser` whose cond["tokens_bias"] are regions A [B, M, h, w], one for each token, zero for none.

    Every cross-attention computes softmax((Q K^T + w A) / sqrt(d)) V with w = scale log(1 + sigma) max(Q K^T), the
    maximum being each sample's own (`layers.attention`); or log(1 + sigma^2), and another unit by what `in_units` makes
    of the bias for the network. A is in [0, 1] where positions are drawn to a token, negative where they are kept from
    it. Conditions without regions pass as they are, and with a scale of 0 all do, without them.
    """

    def paint(x: Tensor, sigma: Tensor, cond: Condition) -> Tensor:
        if "tokens_bias" not in cond:
            return denoiser(x, sigma, cond)
        plain = {key: value for key, value in cond.items() if key != "tokens_bias"}
        if scale == 0:
            return denoiser(x, sigma, plain)
        regions, level = cond["tokens_bias"], sigma.float()
        weight = scale * (level.square() if squared_sigma else level).log1p()
        return denoiser(x, sigma, {**plain, "tokens_bias": in_units(expand(weight, regions) * regions)})

    return paint
