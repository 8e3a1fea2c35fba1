"""Sample quality against alignment over guidance scales, from the same noise and captions at every scale and model.

Quality is measured against the training images, through the same resizing as the model's own; every number carries its
backbone's name.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ldm.data.module import ShardData
from ldm.drawer import Drawer
from ldm.evaluation.reference import Reference, conditions
from ldm.metrics.features import Features
from ldm.metrics.quality import sample_quality
from ldm.sampling import Sampling

Point = dict[str, float]


def measure(
    model: Drawer,
    sampling: Sampling,
    data: ShardData,
    against: Reference,
    num_samples: int,
    backbone: Features,
    alignment: nn.Module,
    seed: int,
    batch_size: int,
    device: torch.device,
    advance: Callable[[int], None] = lambda count: None,
) -> Point:
    """Metrics of samples for the first batches of `data`, of the alignment where these have captions.

    Sample n has noise n whatever the model and the batch.
    """
    features, cosines, start = [], [], 0
    for batch in conditions(data, num_samples, batch_size):
        batch = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
        stop = start + len(batch["key"])
        images = model.generate(sampling, batch, torch.arange(start, stop, device=device), seed)
        features.append(backbone(images).cpu())
        if "caption" in batch:
            cosines.append(alignment(images, batch["caption"]).cpu())
        advance(stop - start)
        start = stop
    generator = torch.Generator().manual_seed(seed)
    table = sample_quality(against.features, torch.cat(features), backbone, generator)
    return {**table, alignment_key(alignment): torch.cat(cosines).mean().item()} if cosines else table


def alignment_key(alignment: nn.Module) -> str:
    """Column of the alignment, with its backbone's name."""
    return f"{alignment.metric}/{alignment.name}"
