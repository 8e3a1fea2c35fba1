"""Frechet distance of two Gaussians fitted to features (Heusel et al. 2017, "GANs trained by two time-scale updates").

It is called FID only on Inception features. Biased upwards at small sample sizes; KID is not.
"""

import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from ldm.errors import UserError


class Moments(NamedTuple):
    """Mean [D] and covariance [D, D], both float64, of `count` feature vectors."""

    mean: Tensor
    covariance: Tensor
    count: int  # type: ignore[assignment]  # hides tuple.count, which nobody calls


def moments(features: Tensor, chunk_samples: int = 4096, device: torch.device | str = "cpu") -> Moments:
    """Moments of features [N, D], N >= 2, with the unbiased covariance, on the CPU.

    They are taken in float64 on `device`, `chunk_samples` rows at a time: features may be memory-mapped.
    """
    if len(features) < 2:
        raise UserError(f"a covariance needs at least 2 samples, got {len(features)}")
    dim = features.shape[1]
    mean = torch.zeros(dim, dtype=torch.float64, device=device)
    for rows in features.split(chunk_samples):
        mean += rows.to(device).double().sum(0)
    mean /= len(features)
    covariance = mean.new_zeros(dim, dim)
    for rows in features.split(chunk_samples):
        centred = rows.to(device).double() - mean
        covariance += centred.T @ centred
    return Moments(mean.cpu(), (covariance / (len(features) - 1)).cpu(), len(features))


def frechet_distance(a: Moments, b: Moments) -> float:
    """|mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)), their eq. 6, in float64.

    tr (A B)^(1/2) is taken as that of the symmetric R^T B R, R R^T = A, whose eigenvalues are real and not negative.
    """
    dim, fewest = len(a.mean), min(a.count, b.count)
    if fewest <= dim:
        warnings.warn(
            f"Frechet distance from {fewest} samples in {dim} dimensions is biased far upwards: compare it only at "
            "equal sample numbers, and report KID",
            stacklevel=2,
        )
    one, other = (a, b) if a.count < b.count else (b, a)
    root = _root(one.covariance, one.count - 1)
    cross = torch.linalg.eigvalsh(root.T @ other.covariance @ root).clamp_min(0).sqrt().sum()
    distance = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * cross
    return float(distance.clamp_min(0))


def _root(covariance: Tensor, rank: int) -> Tensor:
    """R [D, K], R R^T the covariance [D, D]. Of few samples it is of low `rank`, and K little more than that: a random
    basis of its range (arXiv:0909.4061, algorithm 4.1) takes a hundredth of the time of all D eigenvectors.
    """
    dim = len(covariance)
    if 4 * rank < dim:
        generator = torch.Generator().manual_seed(0)
        drawn = torch.randn(dim, rank + 8, generator=generator, dtype=covariance.dtype)
        basis = torch.linalg.qr(covariance @ drawn).Q
        within = basis.T @ covariance @ basis
        if covariance.trace() - within.trace() < 1e-9 * covariance.trace():  # else its rank is not what was said
            return basis @ _root(within, len(within))
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * values.clamp_min(0).sqrt()
