"""Nearest neighbours in feature space, and whether samples copy the training images: two published measures.

Data-copying: Meehan et al. 2020 (arXiv:2004.05675). Authenticity: Alaa et al. 2022 (arXiv:2102.08921).
"""

import math

import torch
from torch import Tensor

from ldm.errors import UserError


def nearest(x: Tensor, members: Tensor, k: int, chunk_samples: int = 4096) -> tuple[Tensor, Tensor]:
    """Distances [N, k], float64, and places [N, k] of the k members [M, D] nearest to each of x [N, D], nearest first.

    In blocks of `chunk_samples` of both sides, so that memory does not grow with N times M.
    """
    if not 1 <= k <= len(members):
        raise UserError(f"k={k}: must be at least 1, and no more than the {len(members)} images to look among")
    found = [_nearest(rows, members, k, chunk_samples) for rows in x.split(chunk_samples)]
    distances, places = (torch.cat(parts) for parts in zip(*found, strict=True))
    return distances, places


def _nearest(rows: Tensor, members: Tensor, k: int, chunk_samples: int) -> tuple[Tensor, Tensor]:
    rows = rows.double()
    distances = rows.new_full((len(rows), 0), math.inf)
    places = torch.zeros(len(rows), 0, dtype=torch.int64)
    for start in range(0, len(members), chunk_samples):
        block = torch.cdist(rows, members[start : start + chunk_samples].double())
        distances = torch.cat([distances, block], 1)
        places = torch.cat([places, torch.arange(start, start + block.shape[1]).expand(len(rows), -1)], 1)
        distances, order = distances.topk(min(k, distances.shape[1]), largest=False)
        places = places.gather(1, order)
    # Of equal images what a matrix product leaves is not 0: once more, exactly.
    exact = torch.stack([(rows - members[own].double()).norm(dim=1) for own in places.T], 1)
    exact, order = exact.sort(dim=1, stable=True)
    return exact, places.gather(1, order)


def data_copying(samples: Tensor, held_out: Tensor) -> tuple[float, float]:
    """How samples and held-out images compare in their distances [N], [M] to the nearest training image.

    The probability that a sample is nearer to the training images than a held-out image is (ties are halves): 0.5 of a
    model that does not copy, 1 of one that does only that. And z of the Mann-Whitney test (their Z_U, equation 1),
    which is below 0 where samples are nearer.
    """
    every, places = torch.cat([samples, held_out]).unique(return_inverse=True)
    counts = torch.stack([places[: len(samples)].bincount(minlength=len(every)),
                          places[len(samples) :].bincount(minlength=len(every))]).double()  # fmt: skip
    farther = counts[1].flip(0).cumsum(0).flip(0) - counts[1] / 2
    n, m = len(samples), len(held_out)
    share = (counts[0] * farther).sum().item() / (n * m)
    return share, (0.5 - share) * math.sqrt(12 * n * m / (n + m + 1))


def authentic(distances: Tensor, places: Tensor, members: Tensor, chunk_samples: int = 4096) -> Tensor:
    """Which of N images are no copies, bool [N]: of `distances` and `places` [N] of their nearest of members [M, D].

    An image is a copy if it is no farther from its nearest training image than that one is from any other one.
    """
    own, back = places.unique(return_inverse=True)
    spaces = nearest(members[own], members, 2, chunk_samples)[0][:, 1]  # the nearest of all is the image itself
    return distances > spaces[back]
