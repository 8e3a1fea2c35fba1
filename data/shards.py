"""A data set: the samples of several shards under one running index, and reading their members by position."""

import hashlib
import json
import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Container, Sequence
from io import FileIO
from itertools import accumulate
from pathlib import Path

from data.errors import BadSample, ShardError
from data.index import ShardIndex, read_index
from data.writing import MANIFEST

MAX_MEMBER_BYTES = 1 << 26
MAX_OPEN_FILES = 64


class ShardSet:
    """Shards in the order given; sample `index` counts through them and never changes."""

    def __init__(self, shards: Sequence[ShardIndex]):
        self.shards = tuple(shards)
        self.bounds = list(accumulate((len(shard) for shard in self.shards), initial=0))

    @classmethod
    def open(cls, paths: Sequence[Path]) -> "ShardSet":
        """Read every shard's headers."""
        return cls([read_index(path) for path in paths])

    def __len__(self) -> int:
        return self.bounds[-1]

    def locate(self, index: int) -> tuple[ShardIndex, int]:
        """The shard of a sample, and the sample's place in it."""
        number = bisect_right(self.bounds, index) - 1
        return self.shards[number], index - self.bounds[number]

    def fingerprint(self) -> str:
        """SHA-256 over the shards' own: from the manifest beside a shard where it lists it, else over its index."""
        digest = hashlib.sha256()
        manifests = {folder: _listed(folder) for folder in {shard.path.parent for shard in self.shards}}
        for shard in self.shards:
            listed = manifests[shard.path.parent].get((shard.path.name, shard.num_bytes))
            digest.update(f"{shard.path.name} {listed or _digest(shard)}\n".encode())
        return digest.hexdigest()


def _listed(folder: Path) -> dict[tuple[str, int], str]:
    """(name, bytes) -> sha256 of the shards that the folder's manifest lists."""
    path = folder / MANIFEST
    if not path.exists():
        return {}
    try:
        splits = json.loads(path.read_text(encoding="utf-8"))["splits"].values()
        return {(row["name"], row["bytes"]): row["sha256"] for split in splits for row in split["shards"]}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ShardError(f"{path} is not a manifest of shards ({error!r}); delete or rebuild it") from None


def _digest(shard: ShardIndex) -> str:
    digest = hashlib.sha256("\n".join([*shard.keys, "", *shard.extensions]).encode())
    for values in (shard.first, shard.kind, shard.offset, shard.size):
        digest.update(values.tobytes())
    return digest.hexdigest()


class MemberReader:
    """Reads members where the index says they are; keeps the files it used last open."""

    def __init__(self) -> None:
        self._files: OrderedDict[Path, FileIO] = OrderedDict()

    def __getstate__(self) -> dict:
        return {"_files": OrderedDict()}  # another process opens its own

    def read(self, shard: ShardIndex, sample: int, wanted: Container[str]) -> dict[str, bytes]:
        """The wanted members of one sample; those it lacks are absent."""
        file = self._open(shard)
        members = {}
        for extension, extent in shard.members(sample).items():
            if extension not in wanted:
                continue
            if extent.size > MAX_MEMBER_BYTES:
                raise BadSample("member too large", f"{extension} has {extent.size} bytes, {MAX_MEMBER_BYTES} allowed")
            # positioned reads, not a memory map: a file cut while in use is an error here and a crash there
            content = os.pread(file.fileno(), extent.size, extent.offset)
            if len(content) != extent.size:
                raise ShardError(f"{shard.path} changed while it was in use; start again")
            members[extension] = content
        return members

    def _open(self, shard: ShardIndex) -> FileIO:
        file = self._files.pop(shard.path, None)
        if file is None:
            file = FileIO(shard.path)
            if os.fstat(file.fileno()).st_size != shard.num_bytes:
                raise ShardError(f"{shard.path} changed while it was in use; start again")
            if len(self._files) >= MAX_OPEN_FILES:
                self._files.popitem(last=False)[1].close()
        self._files[shard.path] = file
        return file
