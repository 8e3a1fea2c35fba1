"""How well images are reconstructed: errors of each, and the distance of the set of reconstructions from the images.

Over any number of batches and ranks; what papers call rFID needs Inception's features, and bears the backbone's name.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from ldm.metrics.features import Features
from ldm.metrics.frechet import frechet_distance, moments
from ldm.metrics.inception_score import inception_score
from ldm.metrics.kid import kernel_distance
from ldm.metrics.reconstruction import ERRORS, errors_of
from ldm.networks.lpips import LPIPS


class Value(NamedTuple):
    """A mean with a standard deviation: over images, subsets or splits; None of what has none."""

    value: float
    std: float | None


class Found(NamedTuple):
    """Of images: errors by name [N], features [N, D] of the images and of their reconstructions; on the CPU."""

    errors: dict[str, Tensor]
    real: Tensor
    fake: Tensor


class Reconstructions:
    """Looks at images and their reconstructions with `backbone` and distances by name, all on one device."""

    def __init__(self, backbone: Features, distances: Mapping[str, LPIPS]):
        self.backbone = backbone
        self.distances = dict(distances)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the errors of each image."""
        return (*ERRORS, *self.distances)

    @torch.no_grad()
    def look_at(self, image: Tensor, output: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [-1, 1] and their reconstructions -> rows [B, errors + 2 D] in float64."""
        output = output.float().clamp(-1, 1)
        errors = [*errors_of(output, image).values(), *(far(output, image) for far in self.distances.values())]
        each = (torch.stack(errors, 1), self.backbone(image), self.backbone(output))
        return torch.cat([part.double() for part in each], 1)

    def none(self) -> Tensor:
        """The rows of no images [0, errors + 2 D]."""
        return torch.empty(0, len(self.names) + 2 * self.backbone.dim, dtype=torch.float64)

    def found(self, rows: Tensor) -> Found:
        """The rows of all images [N, errors + 2 D] taken apart."""
        errors, real, fake = rows.cpu().split([len(self.names), self.backbone.dim, self.backbone.dim], 1)
        return Found(dict(zip(self.names, errors.T, strict=True)), real, fake)


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
