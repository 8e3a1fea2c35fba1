"""The samples of a shard set that pass the filters: decided once for each shard and set of rules, kept in the cache.

The decisions of a shard are one byte for each sample; the indices of what is kept are one memory map for the data set.
"""

import hashlib
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from ldm.data import derived
from ldm.data.errors import BadSample, ShardError
from ldm.data.filters import Filters
from ldm.data.index_cache import Entry
from ldm.data.progress import watched
from ldm.data.shards import Kept, MemberReader, ShardSet
from ldm.data.user_error import UserError

KIND = "filtered samples 1"
READ_SAMPLES = 64


def select(shards: ShardSet, filters: Filters, num_workers: int) -> tuple[Kept, dict[str, int]]:
    """What passes, and how many samples each rule removed; in `num_workers` processes where it is not known yet."""
    files = [_file(shard, filters) for shard in shards.shards]
    path = _folder() / hashlib.sha256("\n".join(file.name for file in files).encode()).hexdigest()[:40]
    if _read(path, check=True) is None:
        _decide(shards, filters, files, num_workers)
        if _read(path, check=True) is None:  # another process may have joined them
            _join(path, files, filters.names)
    head, _ = _read(path, check=False)
    if head["kept"] == 0:
        raise UserError(f"data.filters leave none of {len(shards)} samples; removed: {describe(head['removed'])}")
    return Kept(path, head["kept"], head["body_sha256"]), head["removed"]


def describe(removed: dict[str, int]) -> str:
    """The counts in words."""
    return ", ".join(f"{count} by {name}" for name, count in removed.items()) or "none"


class _Decisions(Dataset):
    """Decides on the shard of each number and keeps the result in the cache, in whatever process this is."""

    def __init__(self, shards: ShardSet, filters: Filters, files: list[Path]):
        self.shards = shards
        self.filters = filters
        self.files = files
        self.reader = MemberReader()

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, number: int) -> int:
        if _read(self.files[number], check=False) is None:
            derived.write(self.files[number], {"kind": KIND}, [self._codes(number).tobytes()])
        return number

    def _codes(self, number: int) -> np.ndarray:
        """uint8 [N]: 0 for what is kept, else one more than the place of the rule that removed it."""
        shard = self.shards.shard(number)
        names = self.filters.names
        codes = np.zeros(len(shard), np.uint8)
        for start in range(0, len(shard), READ_SAMPLES):
            places = range(start, min(start + READ_SAMPLES, len(shard)))
            found = self.reader.read_all(
                [(shard, place) for place in places], self.filters.extensions, self.filters.images
            )
            for place, members in zip(places, found, strict=True):
                if not isinstance(members, BadSample):  # too large a member: the reader will name it
                    name = self.filters.broken(shard.keys[place], members)
                    codes[place] = 0 if name is None else 1 + names.index(name)
        return codes


def _decide(shards: ShardSet, filters: Filters, files: list[Path], num_workers: int) -> None:
    missing = [number for number, file in enumerate(files) if _read(file, check=True) is None]
    for number in missing:
        files[number].unlink(missing_ok=True)  # damaged
    random.Random(os.getpid()).shuffle(missing)  # processes that start together share the work
    loader = DataLoader(
        _Decisions(shards, filters, files), batch_size=None, sampler=missing, num_workers=num_workers,
        generator=torch.Generator(), collate_fn=_as_it_is,
    )  # fmt: skip
    for _ in watched(loader, len(missing), "filtering the samples of shards"):
        pass


def _join(path: Path, files: list[Path], names: list[str]) -> None:
    """Write the indices of what is kept, int64, from the decisions on the shards."""
    none = np.zeros(len(names) + 1, dtype=int)
    counts = sum((np.bincount(_codes(file), minlength=len(none)) for file in files), none).tolist()
    head = {"kind": KIND, "kept": counts[0], "removed": dict(zip(names, counts[1:], strict=True))}
    derived.write(path, head, _indices(files))


def _indices(files: list[Path]) -> Iterator[bytes]:
    """The indices of what is kept, shard by shard."""
    before = 0
    for file in files:
        codes = _codes(file)
        yield (before + np.flatnonzero(codes == 0)).astype(np.int64).tobytes()
        before += len(codes)


def _codes(file: Path) -> np.ndarray:
    """The decisions on a shard."""
    found = _read(file, check=True)
    if found is None:
        raise ShardError(f"{file}: decisions on a shard disappeared while they were used; start again")
    return np.frombuffer(found[1], np.uint8)


def _folder() -> Path:
    return derived.cache_folder() / "filters"


def _file(shard: Entry, filters: Filters) -> Path:
    facts = f"{shard.digest} {shard.facts.num_bytes} {shard.facts.stamp} {filters.identity}"
    return _folder() / hashlib.sha256(facts.encode()).hexdigest()[:40]


def _read(path: Path, check: bool) -> tuple[dict[str, Any], memoryview] | None:
    found = derived.read(path, check)
    return found if found and found[0].get("kind") == KIND else None


def _as_it_is(number: Any) -> Any:
    return number
