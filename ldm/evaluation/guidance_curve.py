"""Sample quality against alignment over guidance scales, from the same noise and captions at every scale and model.

Quality is measured against the training images, through the same resizing as the model's own; every number carries its
backbone's name.
"""

from collections.abc import Callable

import torch
from torch import nn

from ldm.evaluation.reference import Reference
from ldm.generate import Sampling
from ldm.metrics.features import Features
from ldm.metrics.quality import sample_quality
from ldm.model import Model

Point = dict[str, float]


def measure(
    model: Model,
    sampling: Sampling,
    against: Reference,
    num_samples: int,
    backbone: Features,
    alignment: nn.Module,
    seed: int,
    batch_size: int,
    device: torch.device,
    advance: Callable[[int], None] = lambda count: None,
) -> Point:
    """Metrics of samples for the first conditions of `against`; sample n has noise n whatever model and batch."""
    features, cosines = [], []
    for start in range(0, num_samples, batch_size):
        stop = min(start + batch_size, num_samples)
        batch = against.conditions(start, stop)
        if "label" in batch:
            batch["label"] = batch["label"].to(device)
        images = model.generate(sampling, batch, torch.arange(start, stop, device=device), seed)
        features.append(backbone(images).cpu())
        cosines.append(alignment(images, batch["caption"]).cpu())
        advance(stop - start)
    generator = torch.Generator().manual_seed(seed)
    table = sample_quality(against.features, torch.cat(features), backbone, generator)
    return {**table, alignment_key(alignment): torch.cat(cosines).mean().item()}


def alignment_key(alignment: nn.Module) -> str:
    """Column of the alignment, with its backbone's name."""
    return f"{alignment.metric}/{alignment.name}"
