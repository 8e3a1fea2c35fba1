"""How well images are reconstructed: errors of each, and the distance of the set of reconstructions from the images.

Over any number of batches and ranks; what papers call rFID needs Inception's features, and bears the backbone's name.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from ldm.metrics.features import FeatureBank, Features
from ldm.metrics.frechet import frechet_distance, moments
from ldm.metrics.inception_score import inception_score
from ldm.metrics.kid import kernel_distance
from ldm.metrics.reconstruction import reconstruction_errors
from ldm.networks.lpips import LPIPS


class Value(NamedTuple):
    """A mean with a standard deviation: over images, subsets or splits; None of what has none."""

    value: float
    std: float | None


class Found(NamedTuple):
    """Of all images, by their numbers [N]: errors name -> [N], features [N, D] of images and of reconstructions."""

    errors: dict[str, Tensor]
    real: Tensor
    fake: Tensor
    numbers: Tensor


class Reconstructions:
    """Collects images and their reconstructions, as `backbone`, `lpips` and `more` distances by name see them."""

    def __init__(self, backbone: Features, lpips: LPIPS, more: Mapping[str, LPIPS] | None = None):
        self.backbone = backbone
        self.lpips = lpips
        self.more = dict(more or {})
        self._names: list[str] = []
        self._bank = FeatureBank()

    @torch.no_grad()
    def update(self, image: Tensor, output: Tensor, numbers: Tensor) -> None:
        """Add images [B, 3, H, W] in [-1, 1], their reconstructions, and their numbers [B], all on one device."""
        errors = reconstruction_errors(output, image, self.lpips)
        errors |= {name: distance(output, image) for name, distance in self.more.items()}
        self._names = list(errors)
        each = torch.stack(list(errors.values()), 1)  # [B, errors]
        rows = [part.double() for part in (each, self.backbone(image), self.backbone(output))]
        self._bank.to(image.device).update(torch.cat(rows, 1), numbers)

    def compute(self) -> Found:
        """What all ranks, which ask for it together, have collected, on the CPU."""
        rows, numbers = (tensor.cpu() for tensor in self._bank.compute())
        errors, real, fake = rows.split([len(self._names), self.backbone.dim, self.backbone.dim], 1)
        return Found(dict(zip(self._names, errors.T, strict=True)), real, fake, numbers)


def reconstruction_quality(found: Found, backbone: Features, seed: int) -> dict[str, Value]:
    """Means of the errors, then rFID (or what `backbone`, on the CPU, calls its Frechet distance), rKID and IS.

    Those of sets are keyed ``metric/backbone``. The Inception score, of the reconstructions, has 10 splits from 5,000
    images on, as published, and one below.
    """
    errors = {name: Value(each.mean().item(), each.std().item()) for name, each in found.errors.items()}
    distance = frechet_distance(moments(found.real), moments(found.fake))
    kid = kernel_distance(found.real, found.fake, torch.Generator().manual_seed(seed))
    score = inception_score(backbone.classify(found.fake.float()), num_splits=10 if len(found.fake) >= 5000 else 1)
    return {
        **errors,
        f"r{backbone.frechet}/{backbone.name}": Value(distance, None),
        f"rkid/{backbone.name}": Value(*kid),
        f"is/{backbone.name}": Value(*score),
    }
