"""Biases of cross-attention, and what of a layer's products q.k they are in units of (paint-with-words).

eDiff-I (arXiv:2211.01324, section 4.3) has max(Q K^T) and does not say over what; the other units are those of public
re-implementations. Only that over the whole batch lets a sample depend on the others.
"""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

# Products q.k [B, heads, N, M], minus infinity where a token is not visible -> what a bias of 1 adds, to be broadcast.
Unit = Callable[[Tensor], Tensor]


def largest_of_sample(products: Tensor) -> Tensor:
    """Over the heads, queries and tokens of each sample."""
    return products.amax((1, 2, 3), keepdim=True)


def largest_of_head(products: Tensor) -> Tensor:
    """Over the queries and tokens of each head of each sample."""
    return products.amax((2, 3), keepdim=True)


def largest_of_batch(products: Tensor) -> Tensor:
    """Over all there is: of another batch, or another part of a prompt's images, it is another one."""
    return products.amax((0, 1, 2, 3), keepdim=True)


def spread_of_sample(products: Tensor) -> Tensor:
    """The standard deviation over the heads, queries and visible tokens of each sample."""
    seen, products = products.isfinite(), products.float()
    count = seen.sum((1, 2, 3), keepdim=True)
    mean = products.where(seen, 0).sum((1, 2, 3), keepdim=True) / count
    return ((products - mean).where(seen, 0).square().sum((1, 2, 3), keepdim=True) / count).sqrt()


class Bias(NamedTuple):
    """`values` for the places of a map [B, M, h, w], or for the queries of its heads [B, 1, N, M], in a `unit`."""

    values: Tensor
    unit: Unit = largest_of_sample

    @classmethod
    def of(cls, bias: "Tensor | Bias") -> "Bias":
        """A tensor is in units of each sample's largest product."""
        return bias if isinstance(bias, Bias) else cls(bias)
