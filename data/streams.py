"""Orders of samples as iterables for torch's DataLoader and webdataset's DataPipeline.

Every stream can be cut among loader workers: batch m is made by worker m mod W, and the loader puts them back in order.
"""

from collections.abc import Iterator
from itertools import count
from typing import Any

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from data.cache import CachedSamples
from data.errors import BadSample, SkipLog, too_many
from data.plan import BatchPlan, Plan
from data.samples import Sample, Samples
from data.shards import MemberReader, ShardSet
from data.transforms import Augmentation, View

# Numbers turned into indices at once, where no batch size says how many.
BLOCK_SAMPLES = 1024


def _worker() -> tuple[int, int]:
    info = get_worker_info()
    return (0, 1) if info is None else (info.id, info.num_workers)


class TrainStream(IterableDataset):
    """Endless micro-batches of one rank. A bad sample's place is taken by its successor in the epoch's order."""

    def __init__(
        self,
        samples: Samples | CachedSamples,
        plan: Plan,
        batches: BatchPlan,
        augmentation: Augmentation,
        max_bad_fraction: float,
    ):
        self.samples = samples
        self.plan = plan
        self.batches = batches
        self.augmentation = augmentation
        self.max_bad_fraction = max_bad_fraction

    def __iter__(self) -> Iterator[dict[str, Any]]:
        first, step = _worker()
        for micro_batch in count(first, step):
            numbers = self.batches.numbers(micro_batch)
            skipped: list[dict[str, Any]] = []
            indices = self.plan.indices(numbers).tolist()
            found = [self._usable(index, n, skipped) for index, n in zip(indices, numbers.tolist(), strict=True)]
            yield self.samples.batch(found, self.augmentation.views(numbers), numbers.tolist(), skipped)

    def _usable(self, index: int, number: int, skipped: list[dict[str, Any]]) -> Sample:
        """The sample, or the nearest usable one after it; gives up where the run would, so the search is bounded."""
        chain = SkipLog(self.plan.num_samples, self.max_bad_fraction)
        for steps in range(1, self.plan.num_samples + 1):
            try:
                return self.samples.get(index)
            except BadSample as error:
                record = self.samples.record(index, error)
                chain.add([record])
                skipped.append(record)
                index = self.plan.successor(number, steps)
        raise too_many(chain.records, self.plan.num_samples, self.max_bad_fraction)


class PassStream(IterableDataset):
    """One pass over given samples in the given order, unaugmented; bad ones are left out, the last batch may be short.

    A sample's number is its index, so whatever is drawn for it is the same in every pass.
    """

    def __init__(self, samples: Samples | CachedSamples, indices: np.ndarray, batch_size: int):
        self.samples = samples
        self.indices = indices
        self.batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_size)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        first, step = _worker()
        held: dict[str, Any] | None = None
        skipped: list[dict[str, Any]] = []
        for number in range(first, len(self), step):
            found: list[Sample] = []
            for index in self.indices[number * self.batch_size : (number + 1) * self.batch_size].tolist():
                try:
                    found.append(self.samples.get(index))
                except BadSample as error:
                    skipped.append(self.samples.record(index, error))
            if found:
                if held is not None:
                    yield held
                views = [View()] * len(found)
                held = self.samples.batch(found, views, [sample.index for sample in found], skipped)
                skipped = []
        if held is not None:  # held back so that what a wholly bad end skipped is still reported
            yield {**held, "skipped": held["skipped"] + skipped}
        elif skipped:
            raise too_many(skipped, len(self.indices), max_bad_fraction=0.0)


class MemberStream(IterableDataset):
    """Undecoded samples of one rank in the run's order, endless: the first stage of a `webdataset.DataPipeline`."""

    def __init__(self, shards: ShardSet, seed: int, start: int = 0, rank: int = 0, world_size: int = 1):
        self.shards = shards
        self.plan = Plan(len(shards), seed)
        self.start = start
        self.rank = rank
        self.world_size = world_size

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker, num_workers = _worker()
        reader = MemberReader()
        places = np.arange(BLOCK_SAMPLES) * num_workers + worker
        for block in count(0, BLOCK_SAMPLES * num_workers):
            numbers = self.start + (block + places) * self.world_size + self.rank
            for index in self.plan.indices(numbers).tolist():
                shard, place = self.shards.locate(index)
                members = reader.read(shard, place, shard.extensions)
                yield {"__key__": shard.keys[place], "__url__": str(shard.path), **members}
