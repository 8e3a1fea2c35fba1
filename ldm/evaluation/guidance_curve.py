"""Sample quality against alignment over guidance scales, from the same noise and captions at every scale and model.

Quality is measured against the training images, through the same resizing as the model's own; every number carries its
backbone's name.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ldm.data.module import ShardData
from ldm.drawer import Drawer
from ldm.errors import UserError
from ldm.evaluation.intervals import mean_interval, set_intervals
from ldm.evaluation.paired import Paired
from ldm.evaluation.reference import Reference, conditions, in_order
from ldm.generate import NotFinite
from ldm.metrics.features import Features
from ldm.metrics.quality import sample_quality
from ldm.sampling import Sampling
from ldm.training.distributed import gather_objects, together

Point = dict[str, float]
FEWEST = 4  # samples, and images to compare them with: precision asks for the third neighbour
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
) -> Point:
    """Metrics of samples for the first batches of `data`, of the alignment where these have captions.

    Sample n has noise n whatever the model, the batch and the rank it is made on; of several ranks, which call this
    together, only 0 has the metrics. `paired` compares with each sample's true picture, `resamples` (0: none) are those
    of the bootstrap behind the 95 % intervals, columns METRIC_low and METRIC_high. Samples that are not finite are
    counted in the column `nan_images` and not measured: all else is that of the others. Raises ValueError naming them
    where fewer than `FEWEST` are left.
    """
    rows: dict[str, list[Tensor]] = {}
    places, lost = [], None
    with together():
        for batch, numbers in conditions(data, num_samples, batch_size, rank, world_size):
            batch = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
            images, finite, error = _drawn(model, sampling, batch, numbers.to(device), seed)
            lost = lost or error
            found = {"features": backbone(images)}
            if "caption" in batch:
                found[alignment_key(alignment)] = alignment(images, batch["caption"])[:, None]
            if paired:
                found |= paired(images, batch, backbone)
            for name, values in found.items():
                rows.setdefault(name, []).append(values.float().cpu()[finite])
            places.append(numbers[finite])
            advance(len(numbers))
    left = torch.cat(places)
    num_lost = _check_left(num_samples, len(left), lost)
    columns = {name: in_order(torch.cat(parts), left) for name, parts in rows.items()}
    return {} if rank else {**_table(columns, against, backbone, paired, resamples, seed), LOST: num_lost}


def _drawn(
    model: Drawer, sampling: Sampling, batch: dict[str, Any], numbers: Tensor, seed: int
) -> tuple[Tensor, Tensor, str | None]:
    """Images [B, 3, H, W], which of them are finite, bool [B] on the CPU (the others are grey), and what was said."""
    try:
        images = model.generate(sampling, batch, numbers, seed)
    except NotFinite as error:
        return error.images.nan_to_num(), error.finite.cpu(), str(error)
    return images, torch.ones(len(numbers), dtype=torch.bool), None


def _check_left(num_samples: int, own: int, said: str | None) -> int:
    """How many samples were lost on all ranks, which are told. Raises ValueError on all if too few are left."""
    every = gather_objects((own, said))
    left = sum(count for count, _ in every)
    if left == num_samples:
        return 0
    first = next(text for _, text in every if text)
    if left < FEWEST:
        raise UserError(first)
    if said:
        log.warning("%d of %d samples are not in the metrics; %s", num_samples - left, num_samples, first)
    return num_samples - left


def _table(
    columns: Mapping[str, Tensor], against: Reference, backbone: Features, paired: Paired | None, resamples: int,
    seed: int,
) -> Point:  # fmt: skip
    features = columns["features"]
    table = sample_quality(against.features, features, backbone, torch.Generator().manual_seed(seed))
    if resamples:
        table |= set_intervals(table, against.features, features, backbone, resamples, seed)
    for key in (name for name in columns if is_alignment(name)):
        table[key] = columns[key].mean().item()
        if resamples:
            table |= mean_interval(key, columns[key][:, 0], resamples, seed)
    return {**table, **paired.table(columns, features, backbone, resamples, seed)} if paired else table


def alignment_key(alignment: nn.Module) -> str:
    """Column of the alignment, with its backbone's name."""
    return f"{alignment.metric}/{alignment.name}"


def is_alignment(column: str) -> bool:
    """Whether it is the column of an alignment, whatever its backbone."""
    return column.startswith(("alignment_score/", "clip_score/"))
