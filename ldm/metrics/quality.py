"""The table of a sample set against a reference set: every distance, keyed `metric/backbone`."""

import torch
from torch import Tensor

from ldm.metrics.features import Features
from ldm.metrics.frechet import Moments, frechet_distance, moments
from ldm.metrics.inception_score import inception_score
from ldm.metrics.kid import kernel_distance
from ldm.metrics.precision_recall import precision_recall

METRICS = ("kid", "kid_std", "precision", "recall", "is")  # beside the Frechet distance, whose name is the backbone's
CHUNK = 4096  # rows that are classified at a time


def sample_quality(
    real: Tensor | None,
    fake: Tensor,
    backbone: Features,
    generator: torch.Generator,
    real_moments: Moments | None = None,
    real_radii: Tensor | None = None,
) -> dict[str, float]:
    """FD (or FID), KID, precision, recall and Inception score of features real [M, D] and fake [N, D] of `backbone`.

    Both sets must have come through the same resizing and colour handling, or the table measures that. They may be
    memory-mapped; what is computed is computed on the backbone's device. `real_moments` and `real_radii` (radii_of) are
    not computed again where they are known; where there is nothing else of the real images (`real` is None), KID,
    precision and recall are left out. The Inception score has 10 splits from 5,000 samples on, as published, and one
    below.
    """
    device = device_of(backbone)
    if real_moments is None:
        real_moments = moments(real, device=device)
    table = {backbone.frechet: frechet_distance(real_moments, moments(fake, device=device))}
    if real is not None:
        table["kid"], table["kid_std"] = kernel_distance(real, fake, generator, device=device)
        table["precision"], table["recall"] = precision_recall(real, fake, device=device, real_radii=real_radii)
    logits = torch.cat([backbone.classify(rows.to(device)).cpu() for rows in fake.split(CHUNK)])
    table["is"], _ = inception_score(logits, num_splits=10 if len(fake) >= 5000 else 1)
    return {f"{metric}/{backbone.name}": value for metric, value in table.items()}


def device_of(backbone: Features) -> torch.device:
    """Where its weights lie; the CPU if it has none."""
    return next((value.device for value in backbone.state_dict().values()), torch.device("cpu"))
