"""A run's training data: a data set or several mixed, without what the filters remove, and the order of its samples."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import accumulate
from typing import TypedDict

from ldm.data.filters import Filters
from ldm.data.mixture import Mixture
from ldm.data.objects import Location
from ldm.data.paths import expand
from ldm.data.plan import Plan
from ldm.data.selection import select
from ldm.data.shards import ShardSet
from ldm.data.user_error import UserError


class Source(TypedDict):
    """One data set of a mixture."""

    shards: str | Sequence[str]
    weight: float


def read_mixture(mixture: Mapping[str, Source] | None) -> dict[str, Source]:
    """The sources that `data.mixture` names: {NAME: {shards: ..., weight: ...}}."""
    mixture = mixture or {}
    for name, entry in mixture.items():
        if not isinstance(entry, Mapping) or set(entry) != {"shards", "weight"}:
            raise UserError(f"data.mixture.{name}: expected {{shards: ..., weight: ...}}")
        weight = entry["weight"]
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < float("inf"):
            raise UserError(f"data.mixture.{name}.weight={weight!r} is not a number above 0")
        if not isinstance(entry["shards"], str | list | tuple):
            raise UserError(f"data.mixture.{name}.shards={entry['shards']!r}: expected paths of shards")
    return dict(mixture)


class TrainingSet:
    """`train`, or the data sets of `mixture` one after the other under one running index.

    `key` is what errors call `train`.
    """

    def __init__(
        self,
        train: str | Sequence[str] | None,
        mixture: Mapping[str, Source],
        filters: Filters,
        num_workers: int,
        key: str = "data.train",
    ):
        self.train = train
        self.key = key
        self.mixture = mixture
        self.filters = filters
        self.num_workers = num_workers

    @property
    def locations(self) -> list[Location]:
        """Where the shards lie."""
        return [path for paths in self._paths for path in paths]

    @cached_property
    def _paths(self) -> list[list[Location]]:
        """The shards of each set."""
        if self.mixture:
            return [expand(source["shards"], f"data.mixture.{name}.shards") for name, source in self.mixture.items()]
        return [expand(self.train, self.key)]

    @cached_property
    def _selected(self) -> tuple[ShardSet, dict[str, int]]:
        shards = ShardSet.open(self.locations)
        if not self.filters.names:
            return shards, {}
        kept, removed = select(shards, self.filters, self.num_workers)
        return shards.keep(kept), removed

    @property
    def shards(self) -> ShardSet:
        """The shards, with only those of their samples that are used."""
        return self._selected[0]

    @property
    def removed(self) -> dict[str, int]:
        """How many samples each filter removed."""
        return self._selected[1]

    @cached_property
    def starts(self) -> list[int]:
        """The index of each set's first sample."""
        held = {shard.path for shard in self.shards.shards}  # without those that have no samples
        counts = [sum(path in held for path in paths) for paths in self._paths]
        starts = self.shards.starts(list(accumulate(counts[:-1], initial=0)))
        for name, start, end in zip(self.mixture, starts, [*starts[1:], len(self.shards)], strict=False):
            if start == end:
                reason = (
                    "data.filters leave none of its samples" if self.filters.names else "its shards hold no samples"
                )
                raise UserError(f"data.mixture.{name}: {reason}")
        return starts

    def source(self, index: int) -> str:
        """The name of the set that a sample is from."""
        return list(self.mixture)[bisect_right(self.starts, index) - 1]

    def order(self, num_samples: int, seed: int, shuffle_block: int | None) -> Plan | Mixture:
        """The order of the first `num_samples` samples; of all where sets are mixed."""
        if not self.mixture:
            return Plan(num_samples, seed, shuffle_block)
        ends = [*self.starts[1:], len(self.shards)]
        sizes = {name: end - start for name, start, end in zip(self.mixture, self.starts, ends, strict=True)}
        weights = {name: source["weight"] for name, source in self.mixture.items()}
        return Mixture(sizes, weights, seed, shuffle_block)
