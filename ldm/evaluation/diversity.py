"""Whether seeds give different images: LPIPS between samples of one prompt, against the styles of one caption."""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from ldm.networks.lpips import LPIPS


@torch.no_grad()
def mean_distance(groups: Sequence[Tensor], lpips: LPIPS, batch_size: int = 100) -> float | None:
    """Mean over groups [n, 3, H, W] of the mean distance between two images of a group; None if none has two."""
    places, pairs = [], []
    for place, group in enumerate(groups):
        for a, b in itertools.combinations(group, 2):
            places.append(place)
            pairs.append((a, b))
    if not pairs:
        return None
    distances = []
    for start in range(0, len(pairs), batch_size):
        a, b = zip(*pairs[start : start + batch_size], strict=True)
        distances.append(lpips(torch.stack(a), torch.stack(b)).double())
    group = torch.tensor(places)
    sums = torch.zeros(len(groups), dtype=torch.float64).index_add_(0, group, torch.cat(distances))
    counts = group.bincount(minlength=len(groups))
    return (sums[counts > 0] / counts[counts > 0]).mean().item()


def of_one_caption(images: Tensor, captions: Sequence[str], num_captions: int) -> list[Tensor]:
    """The images [n, 3, H, W] of each caption that has several, for the first `num_captions` of those."""
    found: dict[str, list[int]] = {}
    for place, caption in enumerate(captions):
        found.setdefault(caption, []).append(place)
    return [images[places] for places in found.values() if len(places) > 1][:num_captions]
