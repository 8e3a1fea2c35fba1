"""Orders of samples as iterables for torch's DataLoader and webdataset's DataPipeline.

Every stream can be cut among loader workers: batch m is made by worker m mod W, and the loader puts them back in order.
"""

from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from ldm.data.cache import CachedSamples
from ldm.data.errors import BadSample, ShardError, SkipLog, TooManyBadSamples, too_many
from ldm.data.mixture import Mixture
from ldm.data.plan import BatchPlan, Plan
from ldm.data.samples import Sample, Samples
from ldm.data.shards import MemberReader, ShardSet
from ldm.data.transforms import Augmentation

# Numbers turned into indices at once, and samples read at once, where no batch size says how many.
BLOCK_SAMPLES = 1024
READ_SAMPLES = 32


def _worker() -> tuple[int, int]:
    info = get_worker_info()
    return (0, 1) if info is None else (info.id, info.num_workers)


class TrainStream(IterableDataset):
    """Endless micro-batches of one rank. A bad sample's place is taken by its successor in the epoch's order."""

    def __init__(
        self,
        samples: Samples | CachedSamples,
        plan: Plan | Mixture,
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
        return self.micro_batches(*_worker())

    def micro_batches(self, worker: int, num_workers: int) -> Iterator[dict[str, Any]]:
        """The micro-batches that one of the rank's loader workers makes."""
        for micro_batch in count(worker, num_workers):
            numbers = self.batches.numbers(micro_batch)
            skipped: list[dict[str, Any]] = []
            try:
                found = self._usable(numbers, skipped)
            except TooManyBadSamples:
                yield {"skipped": skipped}  # for the run's own SkipLog, which then raises the same error
                raise
            yield self.samples.batch(found, self.augmentation.views(numbers), numbers.tolist(), skipped)

    def _usable(self, numbers: np.ndarray, skipped: list[dict[str, Any]]) -> list[Sample]:
        """The samples of these numbers, read together, and the nearest usable ones after those that are bad."""
        indices = self.plan.indices(numbers).tolist()
        found = zip(numbers.tolist(), indices, self.samples.get_all(indices), strict=True)
        return [
            self._successor(number, index, sample, skipped) if isinstance(sample, BadSample) else sample
            for number, index, sample in found
        ]

    def _successor(self, number: int, index: int, error: BadSample, skipped: list[dict[str, Any]]) -> Sample:
        """The nearest usable sample after a bad one; gives up where the run would, so the search is bounded."""
        chain = SkipLog(self.plan.num_samples, self.max_bad_fraction)
        for steps in range(1, self.plan.num_samples + 1):
            record = self.samples.record(index, error)
            skipped.append(record)
            chain.add([record])
            index = self.plan.successor(number, steps)
            [found] = self.samples.get_all([index])
            if not isinstance(found, BadSample):
                return found
            error = found
        raise too_many(chain.records, self.plan.num_samples, self.max_bad_fraction)


class PassStream(IterableDataset):
    """One pass over given samples in the given order, unaugmented; bad ones are left out, the last batch may be short.

    `order` makes indices of samples of `places`, a batch at a time: a range of a billion takes no memory. A sample's
    number is its index, so whatever is drawn for it is the same in every pass.
    """

    def __init__(
        self,
        samples: Samples | CachedSamples,
        places: range | np.ndarray,
        batch_size: int,
        order: Callable[[np.ndarray], np.ndarray] = np.asarray,
    ):
        self.samples = samples
        self.places = places
        self.batch_size = batch_size
        self.order = order

    def __len__(self) -> int:
        return -(-len(self.places) // self.batch_size)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        first, step = _worker()
        held: dict[str, Any] | None = None
        skipped: list[dict[str, Any]] = []
        for number in range(first, len(self), step):
            found: list[Sample] = []
            places = self.places[number * self.batch_size : (number + 1) * self.batch_size]
            indices = self.order(np.asarray(places, np.int64)).tolist()
            for index, sample in zip(indices, self.samples.get_all(indices), strict=True):
                if isinstance(sample, BadSample):
                    skipped.append(self.samples.record(index, sample))
                else:
                    found.append(sample)
            if found:
                if held is not None:
                    yield held
                views = [self.samples.framing.plain] * len(found)
                held = self.samples.batch(found, views, [sample.index for sample in found], skipped)
                skipped = []
        if held is not None:  # held back so that what a wholly bad end skipped is still reported
            yield {**held, "skipped": held["skipped"] + skipped}
        elif skipped:
            raise too_many(skipped, len(self.places), max_bad_fraction=0.0)


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
            located = [self.shards.locate(index) for index in self.plan.indices(numbers).tolist()]
            for start in range(0, BLOCK_SAMPLES, READ_SAMPLES):
                together = located[start : start + READ_SAMPLES]
                for (shard, place), members in zip(together, reader.read_all(together), strict=True):
                    if isinstance(members, BadSample):
                        raise ShardError(f"{shard.path} {shard.keys[place]}: {members}")
                    yield {"__key__": shard.keys[place], "__url__": str(shard.path), **members}
