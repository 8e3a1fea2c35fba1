"""Sample quality against alignment over guidance scales, from the same noise and captions at every scale and model.

Quality is measured against the training images, through the same resizing as the model's own; every number carries its
backbone's name.
"""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from ldm.data.module import ShardData
from ldm.drawer import Drawer, begun_of
from ldm.errors import UserError
from ldm.evaluation.intervals import mean_interval, set_intervals
from ldm.evaluation.paired import Paired
from ldm.evaluation.reference import Reference
from ldm.measuring import FEWEST, Made, Ranks, alignment_key, make, row_of
from ldm.metrics.features import Features
from ldm.metrics.quality import device_of
from ldm.sampling import Sampling
from ldm.training.distributed import broadcast, gather_objects

Point = dict[str, float]
LOST = "nan_images"  # the column of how many samples were not finite
log = logging.getLogger(__name__)


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
    *,
    paired: Paired | None = None,
    resamples: int = 0,
    keep: Callable[[Tensor], None] = lambda images: None,
    folder: Path | None = None,
    turns: int = 1,
) -> Point:
    """Metrics of samples for the first batches of `data`, of the alignment where these have captions.

    Sample n has noise n whatever the model, the batch and the rank it is made on; of several ranks, which call this
    together, only 0 has the metrics. `paired` compares with each sample's true picture, `resamples` (0: none) are those
    of the bootstrap behind the 95 % intervals, columns METRIC_low and METRIC_high. Samples that are not finite are
    counted in the column `nan_images` and not measured: all else is that of the others. Raises ValueError naming them
    where fewer than `FEWEST` are left. `keep` is given all images of this rank, [B, 3, H, W] at a time;
    features lie on disk, in `folder`. Of experts that come and go each takes `turns` batches on before the next one
    comes.
    """
    said: list[str] = []

    ranks = Ranks(device, rank, world_size, advance)
    beside = partial(paired, first_stage=model.first_stage) if paired else None
    made = make(
        None, data, num_samples, batch_size, backbone, alignment, ranks, beside=beside, keep=keep, folder=folder,
        begun=begun_of(model, sampling, seed, said), turns=turns,
    )  # fmt: skip
    _check_left(num_samples, len(made.broken), said)
    return {} if rank else table_of(made, against, backbone, alignment, paired, resamples, seed)


def _check_left(num_samples: int, lost: int, said: list[str]) -> None:
    """Say which samples are not measured, as `said` has it. Raises ValueError on all ranks if too few of them are."""
    total, every = broadcast(lost), gather_objects(said[:1])
    if not total:
        return
    first = next(line for lines in every for line in lines)
    if num_samples - total < FEWEST:
        raise UserError(first)
    if said:
        log.warning("%d of %d samples are not in the metrics; %s", total, num_samples, first)


def table_of(
    made: Made, against: Reference, backbone: Features, alignment: nn.Module, paired: Paired | None, resamples: int,
    seed: int,
) -> Point:  # fmt: skip
    """The metrics of the images that were `made`, as `measure` has them."""
    known = against.moments, against.radii(device_of(backbone))
    table = row_of(made, against.features, backbone, alignment, seed, *known)
    if resamples:
        table |= set_intervals(table, against.features, made.features, backbone, resamples, seed, against.moments)
        if made.alignments is not None:
            table |= mean_interval(alignment_key(alignment), made.alignments, resamples, seed)
    if paired:
        table |= paired.table(made.beside, made.features, backbone, resamples, seed)
    return {**table, LOST: len(made.broken)}


def is_alignment(column: str) -> bool:
    """Whether it is the column of an alignment, whatever its backbone."""
    return column.startswith(("alignment_score/", "clip_score/"))
