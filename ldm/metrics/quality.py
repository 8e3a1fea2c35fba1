"""The table of a sample set against a reference set: every distance, keyed `metric/backbone`."""

import torch
from torch import Tensor

from ldm.metrics.features import Features
from ldm.metrics.frechet import frechet_distance, moments
from ldm.metrics.inception_score import inception_score
from ldm.metrics.kid import kernel_distance
from ldm.metrics.precision_recall import precision_recall

METRICS = ("kid", "kid_std", "precision", "recall", "is")  # beside the Frechet distance, whose name is the backbone's


def sample_quality(real: Tensor, fake: Tensor, backbone: Features, generator: torch.Generator) -> dict[str, float]:
    """FD (or FID), KID, precision, recall and Inception score of features real [M, D] and fake [N, D] of `backbone`.

    Both sets must have come through the same resizing and colour handling, or the table measures that.
    The Inception score has 10 splits from 5,000 samples on, as published, and one below.
    """
    kid, kid_std = kernel_distance(real, fake, generator)
    precision, recall = precision_recall(real, fake)
    logits = backbone.classify(fake.to(next(backbone.parameters(), fake).device)).cpu()
    score, _ = inception_score(logits, num_splits=10 if len(fake) >= 5000 else 1)
    table = {
        backbone.frechet: frechet_distance(moments(real), moments(fake)),
        "kid": kid,
        "kid_std": kid_std,
        "precision": precision,
        "recall": recall,
        "is": score,
    }
    return {f"{metric}/{backbone.name}": value for metric, value in table.items()}
