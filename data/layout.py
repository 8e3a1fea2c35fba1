"""A digest of the shards' headers, kept with a run: it tells whether the samples and their order are unchanged.

Paths, times and entity tags do not affect it, so shards may be moved, mirrored or signed anew.
"""

from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256

from ldm.data.shards import ShardSet

# What is recorded of a shard whose samples stopped a run: its digest at that time, and that of its keys.
Stopped = Mapping[str, Sequence[str]]


def layout(shards: ShardSet) -> str:
    """SHA-256 over the shards' digests: members, sizes and places, in their order."""
    return _joined(shard.digest for shard in shards.shards)


def stopped_by(shards: ShardSet, indices: Iterable[int]) -> dict[str, list[str]]:
    """The shards that these samples are in: number -> (digest, digest of the keys)."""
    numbers = sorted({shards.place(index)[0] for index in indices})
    return {str(number): [shards.shards[number].digest, _keys(shards, number)] for number in numbers}


def repaired(shards: ShardSet, known: str, stopped: Stopped) -> list[str] | None:
    """The names of shards that were repaired since they stopped a run whose layout is `known`; None if more differs.

    A repair leaves the keys of the shard's samples and their order, so that every other sample keeps its place.
    """
    digests = [shard.digest for shard in shards.shards]
    names = []
    for number, (digest, keys) in stopped.items():
        place = int(number)
        if place < len(digests) and digests[place] != digest and _keys(shards, place) == keys:
            digests[place] = digest
            names.append(shards.shards[place].path.name)
    return names if _joined(digests) == known else None


def _keys(shards: ShardSet, number: int) -> str:
    return _joined(shards.shard(number).keys)


def _joined(texts: Iterable[str]) -> str:
    return sha256("\n".join(texts).encode()).hexdigest()
