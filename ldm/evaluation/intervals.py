"""95 % intervals of what samples are measured by: the bootstrap over samples, at a bounded cost.

The images that samples are compared with stay as they are. What is resampled are the samples' features, never images.
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from ldm.evaluation.table import ends
from ldm.metrics.features import Features
from ldm.metrics.frechet import Moments, moments

LEVEL = 0.95
CHUNK = 1000  # rows that are in memory at a time, in 64 bits
MOST = 5000  # samples, and images to compare them with, that KID's interval is made of


def set_intervals(
    table: Mapping[str, float],
    real: Tensor,
    fake: Tensor,
    backbone: Features,
    resamples: int,
    seed: int,
    known: Moments | None = None,
) -> dict[str, float]:
    """Intervals of what a `table` has of KID, FD, precision and recall, of features real [M, D] and fake [N, D].

    KID's is the spread of `resamples` weighted U-statistics (no image is compared with its own copy), of at most `MOST`
    samples and images to compare with, and narrowed by the root of the share of the samples that is. FD's is the
    bootstrap of its influence function, as its own would ask for two matrix roots a resample: it is the spread alone,
    and the bias of few samples, which moves the value, is not in it. Precision is a share of the samples, recall one of
    the images to compare with; a share of none or of all has no width. `known`: the moments of `real`, if they are.
    """
    generator = torch.Generator().manual_seed(seed)
    draws = np.random.default_rng(seed)

    def frechet(key: str) -> Tensor:
        influence = _frechet_influence(moments(real) if known is None else known, fake)
        return _resampled_mean(influence, resamples, generator)

    spreads: dict[str, Callable[[str], Tensor]] = {
        backbone.frechet: frechet,
        "kid": lambda key: _kernel_spread(real, fake, resamples, generator),
        "precision": lambda key: _shares(table[key], len(fake), resamples, draws),
        "recall": lambda key: _shares(table[key], len(real), resamples, draws),
    }
    found: dict[str, float] = {}
    for metric, spread in spreads.items():
        key = f"{metric}/{backbone.name}"
        if key in table:
            found |= _interval(key, table[key] + spread(key))
    return found


def mean_interval(key: str, values: Tensor, resamples: int, seed: int) -> dict[str, float]:
    """The interval of the mean of `values` [N], which stands under `key`."""
    generator = torch.Generator().manual_seed(seed)
    values = values.double()
    return _interval(key, values.mean() + _resampled_mean(values - values.mean(), resamples, generator))


def _interval(key: str, values: Tensor) -> dict[str, float]:
    tail = (1 - LEVEL) / 2
    low, high = torch.quantile(values, torch.tensor([tail, 1 - tail], dtype=values.dtype)).tolist()
    return dict(zip(ends(key), (low, high), strict=True))


def _counts(num_samples: int, generator: torch.Generator) -> Tensor:
    """How often a resample has each sample, float64 [N]."""
    drawn = torch.randint(num_samples, (num_samples,), generator=generator)
    return drawn.bincount(minlength=num_samples).double()


def _resampled_mean(values: Tensor, resamples: int, generator: torch.Generator) -> Tensor:
    """Means [resamples] of `values` [N] drawn again with replacement."""
    means = [_counts(len(values), generator) @ values / len(values) for _ in range(resamples)]
    return torch.stack(means)


def _shares(share: float, count: int, resamples: int, draws: np.random.Generator) -> Tensor:
    """What a `share` of `count` becomes when these are drawn again, less itself: a binomial's share."""
    return torch.from_numpy(draws.binomial(count, min(max(share, 0.0), 1.0), resamples) / count - share)


def _chosen(x: Tensor, generator: torch.Generator) -> Tensor:
    """At most `MOST` of x [N, D], float64, in their order."""
    if len(x) <= MOST:
        return x.double()
    return x[torch.randperm(len(x), generator=generator)[:MOST].sort().values].double()


def _kernel_spread(real: Tensor, fake: Tensor, resamples: int, generator: torch.Generator) -> Tensor:
    """Squared MMD of resampled `fake` less that of all of it, [resamples]."""
    x, y = _chosen(fake, generator), _chosen(real, generator)
    weights = torch.stack([torch.ones(len(x)).double(), *(_counts(len(x), generator) for _ in range(resamples))])
    own, other, diagonal = (torch.zeros(count, dtype=torch.float64) for count in (len(weights), len(x), len(x)))
    for rows in torch.arange(len(x)).split(CHUNK):
        kernel = (x[rows] @ x.T / x.shape[1] + 1) ** 3
        own += ((kernel @ weights.T) * weights[:, rows].T).sum(0)
        diagonal[rows] = kernel[torch.arange(len(rows)), rows]
        other[rows] = ((x[rows] @ y.T / x.shape[1] + 1) ** 3).mean(1)
    squares = weights.square()
    total = weights.sum(1)
    distance = (own - squares @ diagonal) / (total.square() - squares.sum(1)) - 2 * (weights @ other) / total
    spread = (distance[1:] - distance[0]) * (len(x) / len(fake)) ** 0.5
    return spread.nan_to_num(0.0)  # of a few samples a resample may hold one alone, which has no pair


def _frechet_influence(a: Moments, fake: Tensor) -> Tensor:
    """By how much each sample [N] moves the Frechet distance: its first derivative by the samples' weights, centred.

    d FD = 2 (m - m_r) dm + tr((I - T) dS), T = R (R S R)^(-1/2) R with R = S_r^(1/2): the map that carries the samples'
    Gaussian (m, S) to that of the images `a`, (m_r, S_r).
    """
    if len(fake) <= len(a.mean):
        return _of_few(a, fake)
    b = moments(fake)
    values, vectors = torch.linalg.eigh(a.covariance)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    values, vectors = torch.linalg.eigh(root @ b.covariance @ root)
    inverse = _inverse_root(values)
    transport = root @ (vectors * inverse) @ vectors.T @ root
    stretch = (torch.eye(len(b.mean), dtype=torch.float64) - transport) * len(fake) / (len(fake) - 1)  # S is unbiased
    shift = 2 * (b.mean - a.mean)
    centred = (rows.double() - b.mean for rows in fake.split(CHUNK))
    influence = torch.cat([(rows @ stretch * rows).sum(1) + rows @ shift for rows in centred])
    return influence - influence.mean()


def _of_few(a: Moments, fake: Tensor) -> Tensor:
    """The influence of samples that are no more than their dimensions, by a matrix [N, N] in the place of two [D, D].

    With the centred samples X and X S_r X^T / (N - 1) = U s^2 U^T, x_i T x_i^T is (N - 1) sum_k U_ik^2 s_k.
    """
    mean = fake.double().mean(0)
    centred = fake.double() - mean
    squares, vectors = torch.linalg.eigh(centred @ a.covariance @ centred.T / (len(fake) - 1))
    transported = (len(fake) - 1) * vectors.square() @ squares.clamp_min(0).sqrt()
    stretched = (centred.square().sum(1) - transported) * len(fake) / (len(fake) - 1)
    influence = stretched + 2 * centred @ (mean - a.mean)
    return influence - influence.mean()


def _inverse_root(values: Tensor) -> Tensor:
    """values [D]^(-1/2) of eigenvalues, rising; 0 where there is none but for rounding."""
    usable = values > values[-1] * 1e-12
    return torch.where(usable, values.clamp_min(1e-300).rsqrt(), 0.0)
