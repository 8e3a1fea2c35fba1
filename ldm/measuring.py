"""Images made by any number of ranks in step, and the metrics of them: what evaluate.py and callback.quality share.

Sample n has condition n and noise n whatever the batch and the rank it is made on, so a row does not depend on them.
"""

import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.data.module import ShardData
from ldm.metrics.features import Features
from ldm.metrics.frechet import Moments
from ldm.metrics.quality import sample_quality
from ldm.spool import Spool, merged
from ldm.training.distributed import collect, max_over_ranks, together

Batch = dict[str, Any]
Row = dict[str, float]
# Images [B, 3, H, W] in [-1, 1] for a batch and the int64 numbers [B] of what is drawn; those that are not finite: NaN.
Draw = Callable[[Batch, Tensor], Tensor]
# The same of several batches, whose images are made in turn.
Begun = Callable[[Sequence[tuple[Batch, Tensor]]], Sequence[Callable[[], Tensor]]]
# Columns [B, ...] of what else is asked of images, in NaN where they are, under the batch that they were drawn for.
Beside = Callable[[Tensor, Batch, Features], dict[str, Tensor]]
FEATURES, ALIGNMENT = "features", "alignment"  # columns of their own
GOES_ON, STOPS = 1, 2
FEWEST = 4  # samples, and images to compare them with: precision asks for the third neighbour


@dataclass(frozen=True)
class Ranks:
    """This process among those that measure together; `advance(count)` is told of each batch, and where `stopped()` is
    true on any of them, all raise Stopped.
    """

    device: torch.device
    rank: int = 0
    world_size: int = 1
    advance: Callable[[int], None] = field(default=lambda count: None)
    stopped: Callable[[], bool] = field(default=lambda: False)


class Stopped(Exception):
    """The measurement was asked to end, on all ranks after the same batch."""


@dataclass(frozen=True)
class Made:
    """What is known of a set of images, on rank 0 of all ranks' in the order of their numbers, elsewhere of its own."""

    features: Tensor  # [N, D] of the finite ones; they lie on disk
    alignments: Tensor | None  # [N] of the same, where there are captions
    beside: dict[str, Tensor]  # [N, ...] of the same: what `beside` of `make` found
    broken: list[int]  # numbers of those that are not finite; on rank 0 all, elsewhere its own
    seconds: float  # of drawing, on this rank


def make(
    draw: Draw | None,
    data: ShardData,
    num_samples: int,
    batch_size: int,
    backbone: Features,
    alignment: nn.Module | None,
    ranks: Ranks,
    cached: bool = False,
    beside: Beside | None = None,
    keep: Callable[[Tensor], None] = lambda images: None,
    folder: Path | None = None,
    begun: Begun | None = None,
    turns: int = 1,
) -> Made:
    """Draw for the first `num_samples` conditions of `data` and look at what comes.

    All ranks call this together, make their share batch by batch in step, and end together if one of them fails.
    `num_samples` is at least the number of ranks. `cached`: conditions come from data.cache, where it is read.
    `beside` finds what else is asked of each image; `keep` is given all images of this rank, [B, 3, H, W] at a time.
    Features are written to `folder` (None: the system's for temporary files), in a file that has no name.
    `begun` draws in the place of `draw`; `turns` batches at a time are begun together, and may wait for each other.
    """
    with together():
        features = Spool(Path(tempfile.gettempdir()) if folder is None else folder)
    rows: dict[str, list[Tensor]] = {}
    places, broken, seconds = [], [], 0.0  # of all images of this rank, and of those that are not finite
    batches = conditions(data, num_samples, batch_size, ranks.rank, ranks.world_size, cached)
    if begun is None:
        assert draw is not None
        one = draw
        begun = lambda asked: [partial(one, *each) for each in asked]  # noqa: E731
    for group, own in in_rounds(_in_turns(batches, turns), ranks):
        with together():
            began = time.monotonic()
            asked = [(moved(ranks.device, batch), numbers.to(ranks.device)) for batch, numbers in group]
            for (batch, _), (_, numbers), drawn in zip(asked, group, begun(asked), strict=True):
                images = drawn().float()
                finite = images.isfinite().flatten(1).all(1).cpu()
                seconds += time.monotonic() - began
                found = _looked_at(images, batch, backbone, alignment)
                found |= beside(images, batch, backbone) if beside else {}
                if own:
                    keep(images)
                    features.add(found.pop(FEATURES))
                    for name, values in found.items():
                        rows.setdefault(name, []).append(values.cpu()[finite])
                    places.append(numbers)
                    broken += numbers[~finite].tolist()
                    ranks.advance(len(numbers))
                began = time.monotonic()
    own_numbers = torch.cat(places)
    left = own_numbers[_kept(own_numbers, broken)]
    every = {name: in_order(torch.cat(parts), left) for name, parts in rows.items()}
    lost = sorted(number for own in collect(broken) for number in own) or broken
    seen = merged(features).whole()
    kept = _kept(torch.arange(num_samples) if ranks.rank == 0 else own_numbers, lost)
    return Made(seen if kept.all() else seen[kept], every.pop(ALIGNMENT, None), every, lost, seconds)


def _kept(numbers: Tensor, lost: list[int]) -> Tensor:
    """Which of `numbers` are not among those that are lost."""
    return torch.isin(numbers, torch.tensor(lost, dtype=numbers.dtype), invert=True)


def _in_turns(batches: Iterator[Any], count: int) -> Iterator[list[Any]]:
    """`count` of them at a time, the last time what is left."""
    while group := list(islice(batches, count)):
        yield group


def moved(device: torch.device, value: Any) -> Any:
    """A batch with its tensors on `device`, those of a cache too, which are mappings in it."""
    if isinstance(value, dict):
        return {name: moved(device, part) for name, part in value.items()}
    return value.to(device) if isinstance(value, Tensor) else value


def _looked_at(images: Tensor, batch: Batch, backbone: Features, alignment: nn.Module | None) -> dict[str, Tensor]:
    """Features [B, D], and the alignment [B] where there are captions."""
    with torch.autocast(images.device.type, enabled=False):
        found = {FEATURES: backbone(images).float()}
        if alignment is not None and "caption" in batch:
            found[ALIGNMENT] = alignment(images, batch["caption"]).float()
    return found


def in_rounds(items: Iterable[Any], ranks: Ranks) -> Iterator[tuple[Any, bool]]:
    """(item, whether it is one of this rank's own), equally many on each rank: one that has none left repeats its last.

    So the ranks are never apart by more than one batch: one that is gone is noticed, and no collective waits for long.
    An error of reading is raised on all ranks, and Stopped if any rank is asked to stop.
    """
    source, last = iter(items), None
    while True:
        with together():
            item = next(source, None)
        state = max_over_ranks(STOPS if ranks.stopped() else GOES_ON * (item is not None), ranks.device)
        if state == STOPS:
            raise Stopped
        if state != GOES_ON:
            return
        last = last if item is None else item
        yield last, item is not None


def row_of(
    made: Made, real: Tensor | None, backbone: Features, alignment: nn.Module | None, seed: int,
    real_moments: Moments | None = None, real_radii: Tensor | None = None,
) -> Row:  # fmt: skip
    """The metrics, ``METRIC/BACKBONE``, of images on rank 0 of those that made them, as `sample_quality` has them.

    They are compared with features real [M, D], or what there is of them.
    """
    generator = torch.Generator().manual_seed(seed)
    row = sample_quality(real, made.features, backbone, generator, real_moments, real_radii)
    if alignment is not None and made.alignments is not None:
        row[alignment_key(alignment)] = made.alignments.mean().item()
    return row


def alignment_key(alignment: nn.Module) -> str:
    """Column of the alignment, with its backbone's name."""
    return f"{alignment.metric}/{alignment.name}"


def look_at(data: ShardData, num_images: int | None, batch_size: int, backbone: Features, ranks: Ranks) -> Tensor:
    """Features [M, D] of the first `num_images` training images (None: all) in a fixed random order, whole on rank 0.

    All ranks call this together.
    """
    features = []
    loader = data.statistics_loader(ranks.rank, ranks.world_size, batch_size, num_images)
    for batch, own in in_rounds(loader, ranks):
        with together(), torch.autocast(ranks.device.type, enabled=False):
            found = backbone(batch["image"].to(ranks.device)).cpu() if own else None
        if own:
            features.append(found)
            ranks.advance(len(found))
    rows = torch.cat([torch.empty(0, backbone.dim), *features])
    return in_order(rows, torch.arange(len(rows)) * ranks.world_size + ranks.rank)


def conditions(
    data: ShardData, num_samples: int, batch_size: int, rank: int = 0, world_size: int = 1, cached: bool = False
) -> Iterator[tuple[Batch, Tensor]]:
    """Whole batches of training samples in that order, repeated from the start if there are fewer than `num_samples`.

    With the numbers, int64 [B], of what is to be sampled for them: of 0 to `num_samples` each `world_size`-th from
    `rank` on. A generator samples for what its model reads of them, whatever that is. `cached`: with what data.cache
    has of them, where it is read.
    """
    numbers, begun = torch.arange(num_samples)[rank::world_size], 0
    while len(numbers):
        first = (rank - begun) % world_size  # of this rank in this round of the order
        last = min(data.num_train, first + (len(numbers) - 1) * world_size + 1)
        if first < last:
            for batch in data.statistics_loader(first, world_size, batch_size, last, cached=cached):
                yield batch, numbers[: len(batch["key"])]
                numbers = numbers[len(batch["key"]) :]
        begun += data.num_train


def in_order(rows: Tensor, numbers: Tensor) -> Tensor:
    """The rows [N, ...] of all ranks, on the CPU, in the order of their `numbers` [N], on rank 0; elsewhere its own."""
    found = collect((rows, numbers))
    if not found:
        return rows
    every, order = (torch.cat(parts) for parts in zip(*found, strict=True))
    return every[order.argsort()]
