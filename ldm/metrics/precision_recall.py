"""Improved precision and recall (Kynkaanniemi et al. 2019): are samples realistic, and are the data covered."""

import torch
from torch import Tensor

from ldm.errors import UserError


def precision_recall(real: Tensor, fake: Tensor, k: int = 3, chunk_samples: int = 4096) -> tuple[float, float]:
    """Precision: share of fake [N, D] inside the manifold of real [M, D]; recall: the reverse; both in [0, 1].

    A set's manifold is the union of balls around its members that reach to their k-th nearest neighbour (their eq. 1).
    Distances are taken in float64, `chunk_samples` rows at a time.
    """
    if min(len(real), len(fake)) <= k:
        raise UserError(f"k={k} neighbours need more than {k} samples a side, got {len(real)} and {len(fake)}")
    real, fake = real.double(), fake.double()
    precision = _inside(fake, real, _radii(real, k, chunk_samples), chunk_samples)
    recall = _inside(real, fake, _radii(fake, k, chunk_samples), chunk_samples)
    return precision, recall


def _radii(x: Tensor, k: int, chunk_samples: int) -> Tensor:
    # The nearest of all is the point itself, hence k + 1.
    return torch.cat([torch.cdist(rows, x).kthvalue(k + 1, dim=1).values for rows in x.split(chunk_samples)])


def _inside(x: Tensor, members: Tensor, radii: Tensor, chunk_samples: int) -> float:
    inside = [(torch.cdist(rows, members) <= radii).any(dim=1) for rows in x.split(chunk_samples)]
    return float(torch.cat(inside).double().mean())
