"""Improved precision and recall (Kynkaanniemi et al. 2019): are samples realistic, and are the data covered."""

from collections.abc import Iterator

import torch
from torch import Tensor

from ldm.errors import UserError


def precision_recall(
    real: Tensor,
    fake: Tensor,
    k: int = 3,
    chunk_samples: int = 2048,
    device: torch.device | str = "cpu",
    real_radii: Tensor | None = None,
) -> tuple[float, float]:
    """Precision: share of fake [N, D] inside the manifold of real [M, D]; recall: the reverse; both in [0, 1].

    A set's manifold is the union of balls around its members that reach to their k-th nearest neighbour (their eq. 1).
    Distances are taken in float64 on `device`, `chunk_samples` rows of one set against as many of the other at a time:
    the sets may be memory-mapped, and are never copied whole. `real_radii`: the `radii_of` real, if they are known.
    """
    if min(len(real), len(fake)) <= k:
        raise UserError(f"k={k} neighbours need more than {k} samples a side, got {len(real)} and {len(fake)}")
    radii = radii_of(real, k, chunk_samples, device) if real_radii is None else real_radii.to(device)
    reaches = radii_of(fake, k, chunk_samples, device)
    precise, covered = (torch.zeros(len(x), dtype=torch.bool, device=device) for x in (fake, real))
    for own, rows in _blocks(fake, chunk_samples, device):
        for other, members in _blocks(real, chunk_samples, device):
            distances = torch.cdist(rows, members)
            precise[own] |= (distances <= radii[other]).any(1)
            covered[other] |= (distances <= reaches[own, None]).any(0)
    return float(precise.double().mean()), float(covered.double().mean())


def radii_of(x: Tensor, k: int = 3, chunk_samples: int = 2048, device: torch.device | str = "cpu") -> Tensor:
    """Distance [N] of each of x [N, D] to its k-th nearest neighbour; the nearest of all is the point itself.

    Its time grows with N^2, and of many images it is most of what a comparison with them takes.
    """
    radii = torch.empty(len(x), dtype=torch.float64, device=device)
    for own, rows in _blocks(x, chunk_samples, device):
        nearest = radii.new_full((len(rows), k + 1), torch.inf)
        for _, others in _blocks(x, chunk_samples, device):
            distances = torch.cdist(rows, others)
            few = distances.topk(min(k + 1, len(others)), largest=False).values
            nearest = torch.cat([nearest, few], 1).topk(k + 1, largest=False).values
        radii[own] = nearest.amax(1)
    return radii


def _blocks(x: Tensor, chunk_samples: int, device: torch.device | str) -> Iterator[tuple[slice, Tensor]]:
    for start in range(0, len(x), chunk_samples):
        rows = x[start : start + chunk_samples]
        yield slice(start, start + len(rows)), rows.to(device).double()
