"""Kernel distance of two feature sets (Binkowski et al. 2018, "Demystifying MMD GANs"), unbiased at any sample size.

It is called KID only on Inception features; elsewhere the backbone's name stands beside it.
"""

import torch
from torch import Tensor

from ldm.errors import UserError


def polynomial_mmd(x: Tensor, y: Tensor) -> Tensor:
    """Unbiased squared MMD (may be negative) of x [M, D] and y [N, D] with the kernel (x.y / D + 1)^3."""

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / a.shape[1] + 1) ** 3

    def without_diagonal(k: Tensor) -> Tensor:
        return (k.sum() - k.diagonal().sum()) / (len(k) * (len(k) - 1))

    return without_diagonal(kernel(x, x)) + without_diagonal(kernel(y, y)) - 2 * kernel(x, y).mean()


def kernel_distance(
    real: Tensor,
    fake: Tensor,
    generator: torch.Generator,
    num_subsets: int = 100,
    subset_size: int = 1000,
    device: torch.device | str = "cpu",
) -> tuple[float, float]:
    """Mean and standard deviation of the squared MMD over random subsets of real [M, D] and fake [N, D], in float64.

    Subsets are drawn without replacement and are no larger than the smaller set; where both sets are taken whole,
    one evaluation is the answer and its deviation is 0. The deviation is that of subsets, not of the mean. The sets may
    be memory-mapped: no more than a subset of each is copied, to `device`.
    """
    size = min(subset_size, len(real), len(fake))
    if size < 2:
        raise UserError(f"the kernel distance needs at least 2 samples a side, got {len(real)} and {len(fake)}")
    whole = size == len(real) == len(fake)

    def subset(x: Tensor) -> Tensor:
        chosen = torch.randperm(len(x), generator=generator, device=generator.device)[:size]
        return x[chosen.to(x.device)].to(device).double()

    values = torch.stack([polynomial_mmd(subset(real), subset(fake)) for _ in range(1 if whole else num_subsets)])
    return float(values.mean()), float(values.std(correction=0))
