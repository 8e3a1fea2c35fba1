"""A data set: the samples of several shards under one running index, and reading their members by position."""

import hashlib
import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Container, Sequence
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from ldm.data import derived
from ldm.data.bounded_json import load_json
from ldm.data.errors import BadSample, ShardError
from ldm.data.index import ShardIndex, split_name
from ldm.data.index_cache import Entry, entries, open_index
from ldm.data.local_copies import LocalCopies
from ldm.data.objects import CHANGED, Facts, Location, Span, Url
from ldm.data.open_files import OpenFile, OpenFiles, room
from ldm.data.storage import read_spans, read_whole
from ldm.data.tar_headers import BLOCK, Extent, header_name
from ldm.data.writing import MANIFEST

MAX_MEMBER_BYTES = 1 << 26
MAX_OPEN_FILES = 64
MAX_OPEN_INDICES = 256
MAX_GAP_BYTES = 1 << 16  # members of a remote sample that lie closer are read as one span


class Kept:
    """The samples of a shard set that are used, ascending: a memory map of int64 that each process opens for itself."""

    def __init__(self, path: Path, count: int, digest: str):
        self.path = path
        self.digest = digest
        self._count = count
        self._array: np.ndarray | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_array": None}

    def __len__(self) -> int:
        return self._count

    def array(self) -> np.ndarray:
        """The indices of all kept samples."""
        if self._array is None:
            found = derived.read(self.path, check=False)
            if found is None or found[0]["body_sha256"] != self.digest:
                raise ShardError(f"{self.path} disappeared while it was in use; start again")
            self._array = np.frombuffer(found[1], np.int64)
        return self._array


class ShardSet:
    """Shards in the order given; sample `index` counts through them, or through those of their samples that are kept.

    In memory are a few words for each shard. Indices of shards are memory maps, opened when a sample of theirs is
    looked for; each process keeps those it used last.
    """

    def __init__(self, shards: Sequence[Entry], kept: Kept | None = None):
        self.shards = tuple(shards)
        self.kept = kept
        self.bounds = list(accumulate((shard.num_samples for shard in self.shards), initial=0))
        self._indices: OrderedDict[int, ShardIndex] = OrderedDict()
        self._checked: set[int] = set()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_indices": OrderedDict()}  # another process maps its own

    @classmethod
    def open(cls, paths: Sequence[Location]) -> "ShardSet":
        """Learn what every shard holds, from its headers if they were never read before."""
        return cls(entries(paths))

    def keep(self, kept: Kept) -> "ShardSet":
        """The same shards with only these of their samples."""
        return ShardSet(self.shards, kept)

    def __len__(self) -> int:
        return self.bounds[-1] if self.kept is None else len(self.kept)

    def place(self, index: int) -> tuple[int, int]:
        """The number of the shard that a sample is in, and its place there."""
        within = index if self.kept is None else int(self.kept.array()[index])
        number = bisect_right(self.bounds, within) - 1
        return number, within - self.bounds[number]

    def locate(self, index: int) -> tuple[ShardIndex, int]:
        """The shard of a sample, and the sample's place in it."""
        number, place = self.place(index)
        return self.shard(number), place

    def starts(self, bounds: Sequence[int]) -> list[int]:
        """How many samples lie before the shards of these numbers."""
        before = [self.bounds[number] for number in bounds]
        return before if self.kept is None else np.searchsorted(self.kept.array(), before).tolist()

    def shard(self, number: int) -> ShardIndex:
        """The index of the shard of that number."""
        found = self._indices.pop(number, None)
        if found is None:
            found = open_index(self.shards[number], check=number not in self._checked)
            self._checked.add(number)
            if len(self._indices) >= room(MAX_OPEN_INDICES):
                self._indices.popitem(last=False)
        self._indices[number] = found
        return found

    @cached_property
    def fingerprints(self) -> list[str]:
        """SHA-256 of each shard: from the manifest beside it where that lists it, else over its index."""
        return [known or shard.digest for known, shard in zip(self.listed(), self.shards, strict=True)]

    def listed(self) -> list[str | None]:
        """SHA-256 of each shard's bytes where the manifest beside it lists it."""
        manifests = {folder: listed_shards(folder) for folder in {shard.path.parent for shard in self.shards}}
        return [manifests[s.path.parent].get((s.path.name, s.facts.num_bytes)) for s in self.shards]

    def fingerprint(self) -> str:
        """SHA-256 over the shards' names and their own, and over which samples are kept."""
        rows = [f"{s.path.name} {own}\n" for s, own in zip(self.shards, self.fingerprints, strict=True)]
        kept = "" if self.kept is None else f"kept {self.kept.digest}\n"
        return hashlib.sha256("".join([*rows, kept]).encode()).hexdigest()


def listed_shards(folder: Location) -> dict[tuple[str, int], str]:
    """(name, bytes) -> sha256 of the shards that the folder's manifest lists."""
    path = folder / MANIFEST
    content = read_whole(path)
    if content is None:
        return {}
    try:
        splits = load_json(content)["splits"].values()
        return {(row["name"], row["bytes"]): row["sha256"] for split in splits for row in split["shards"]}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ShardError(f"{path} is not a manifest of shards ({error!r}); delete or rebuild it") from None


class MemberReader:
    """Reads members where the index says they are: local files by position, remote ones all at the same time.

    A remote shard that `copies` has a copy of is a local file.
    """

    def __init__(self, copies: LocalCopies | None = None) -> None:
        self._files = OpenFiles(MAX_OPEN_FILES)
        self._copies = copies

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": OpenFiles(MAX_OPEN_FILES)}  # another process opens its own

    def read(self, shard: ShardIndex, sample: int, wanted: Container[str]) -> dict[str, bytes]:
        """The wanted members of one sample; those it lacks are absent. Raises BadSample if one is too large."""
        [found] = self.read_all([(shard, sample)], wanted)
        if isinstance(found, BadSample):
            raise found
        return found

    def read_all(
        self,
        places: Sequence[tuple[ShardIndex, int]],
        wanted: Container[str] | None = None,
        first_of: Sequence[str] = (),
    ) -> list[dict[str, bytes] | BadSample]:
        """The wanted members (or all) of several samples, and the first that there is of `first_of`.

        A BadSample stands for one that has too large a member.
        """
        found: list[Any] = [_choose(shard, sample, wanted, first_of) for shard, sample in places]
        usable = [place for place, extents in enumerate(found) if not isinstance(extents, BadSample)]
        local = {place: self._local(places[place][0]) for place in usable}
        fetched = iter(_fetch([(*places[place], found[place]) for place in usable if local[place] is None]))
        touched = {}
        for place in usable:
            if local[place] is None:
                found[place] = next(fetched)
                continue
            path, facts = local[place]
            try:  # one after the other: of many, those that were opened first are closed by then
                touched[path] = file = self._files.open(path, facts)
                found[place] = _read_members(file, found[place])
            except FileNotFoundError:
                if not isinstance(places[place][0].path, Url):
                    raise
                [found[place]] = _fetch([(*places[place], found[place])])  # its copy was deleted a moment ago
        for file in touched.values():
            file.check()  # after the reads
        return found

    def _local(self, shard: ShardIndex) -> tuple[Path, Facts] | None:
        """The file that holds a shard, and its facts: itself or a copy; None for one that is read where it lies."""
        if isinstance(shard.path, Url):
            return self._copies.find(shard.path, shard.facts) if self._copies else None
        return shard.path, shard.facts


def _read_members(file: OpenFile, extents: dict[str, Extent]) -> dict[str, bytes]:
    members = {}
    for extension, (offset, size) in extents.items():
        # positioned reads, not a memory map: a file cut while in use is an error here and a crash there
        members[extension] = content = os.pread(file.descriptor, size, offset)
        if len(content) != size:
            raise ShardError(f"{file.path}{CHANGED}")
    return members


def _choose(
    shard: ShardIndex, sample: int, wanted: Container[str] | None, first_of: Sequence[str]
) -> dict[str, Extent] | BadSample:
    """Where the wanted members of a sample are."""
    extents = shard.members(sample)
    if wanted is not None:
        first = next((name for name in first_of if name in extents), None)
        extents = {name: extent for name, extent in extents.items() if name in wanted or name == first}
    for name, extent in extents.items():
        if extent.size > MAX_MEMBER_BYTES:
            return BadSample("member too large", f"{name} has {extent.size} bytes, {MAX_MEMBER_BYTES} allowed")
    return extents


def _fetch(requests: Sequence[tuple[ShardIndex, int, dict[str, Extent]]]) -> list[dict[str, bytes]]:
    """Members of remote samples. Their headers are read with them, and must be of the same samples."""
    spans = [_spans(shard, extents) for shard, _, extents in requests]
    contents = iter(read_spans([span for own in spans for span in own]))
    found = []
    for (shard, sample, extents), own in zip(requests, spans, strict=True):
        pieces = [(span.start, next(contents)) for span in own]
        members = {}
        for name, (offset, size) in extents.items():
            start, piece = next(pair for pair in reversed(pieces) if pair[0] < offset)
            there = header_name(piece[offset - start - BLOCK : offset - start], size)
            if there is None or (shard.outline.plain and split_name(there) != (shard.keys[sample], name)):
                raise ShardError(f"{shard.path}{CHANGED}")
            members[name] = piece[offset - start : offset - start + size]
        found.append(members)
    return found


def _spans(shard: ShardIndex, extents: dict[str, Extent]) -> list[Span]:
    """The spans that cover members and their headers: one, but for members that lie far apart."""
    spans: list[Span] = []
    assert isinstance(shard.path, Url)
    for offset, size in sorted(extents.values()):
        near = spans and offset - BLOCK - spans[-1].stop <= MAX_GAP_BYTES
        start = spans.pop().start if near else offset - BLOCK
        spans.append(Span(shard.path, start, offset + size, shard.facts))
    return spans
