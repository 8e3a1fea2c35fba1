"""Sample quality against alignment over guidance scales, from the same noise and captions at every scale and model.

Quality is measured against the training images, through the same resizing as the model's own; every number carries its
backbone's name.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ldm.data.module import ShardData
from ldm.drawer import Drawer
from ldm.evaluation.reference import Reference, conditions, in_order
from ldm.metrics.features import Features
from ldm.metrics.quality import sample_quality
from ldm.sampling import Sampling
from ldm.training.distributed import together

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
    rank: int = 0,
    world_size: int = 1,
    keep: Callable[[Tensor], None] = lambda images: None,
) -> Point:
    """Metrics of samples for the first batches of `data`, of the alignment where these have captions.

    Sample n has noise n whatever the model, the batch and the rank it is made on; of several ranks, which call this
    together, only 0 has the metrics. `keep` is given all images of this rank, [B, 3, H, W] at a time.
    """
    rows, places, captioned = [], [], False
    with together():
        for batch, numbers in conditions(data, num_samples, batch_size, rank, world_size):
            batch = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
            images = model.generate(sampling, batch, numbers.to(device), seed)
            keep(images)
            columns, captioned = [backbone(images)], "caption" in batch
            if captioned:
                columns.append(alignment(images, batch["caption"]).to(columns[0])[:, None])
            rows.append(torch.cat(columns, 1).cpu())
            places.append(numbers)
            advance(len(numbers))
    every = in_order(torch.cat(rows), torch.cat(places))
    if rank:
        return {}
    generator = torch.Generator().manual_seed(seed)
    table = sample_quality(against.features, every[:, : backbone.dim], backbone, generator, against.moments)
    return {**table, alignment_key(alignment): every[:, -1].mean().item()} if captioned else table


def alignment_key(alignment: nn.Module) -> str:
    """Column of the alignment, with its backbone's name."""
    return f"{alignment.metric}/{alignment.name}"
