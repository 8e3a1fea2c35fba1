"""Sample quality against alignment over guidance scales, from the same noise and captions at every scale and model.

Quality is measured against the training images, through the same resizing as the model's own; every number carries its
backbone's name.
"""

from collections.abc import Callable

import torch
from torch import nn

from ldm.data.module import ShardData
from ldm.drawer import Drawer
from ldm.evaluation.reference import Reference
from ldm.measuring import Ranks, make, row_of
from ldm.measuring import alignment_key as alignment_key  # where it was
from ldm.metrics.features import Features
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
    rank: int = 0,
    world_size: int = 1,
) -> Point:
    """Metrics of samples for the first batches of `data`, of the alignment where these have captions.

    Sample n has noise n whatever the model, the batch and the rank it is made on; of several ranks, which call this
    together, only 0 has the metrics.
    """
    ranks = Ranks(device, rank, world_size, advance)
    made = make(
        lambda batch, numbers: model.generate(sampling, batch, numbers, seed),
        data, num_samples, batch_size, backbone, alignment, ranks,
    )  # fmt: skip
    return {} if rank else row_of(made, against.features, backbone, alignment, seed)
