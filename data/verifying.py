"""Shards read again from their first byte to their last, and verified against the manifest beside them.

All other code trusts the SHA-256 hashes in a manifest; only here are they computed. `scripts/doctor.py verify=`
is the front.
"""

import hashlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ldm.data.errors import ShardError
from ldm.data.index import read_index
from ldm.data.objects import Facts, Location, Span, Url
from ldm.data.shards import listed_shards
from ldm.data.storage import facts, read_spans

CHUNK_BYTES = 1 << 24


class Verdict(NamedTuple):
    """What was seen of one shard: `problem` in one line, or None; `listed` if a manifest says what it should be."""

    path: Location
    sha256: str  # of its bytes as they are now; empty where they could not be read
    listed: bool
    problem: str | None


def verify(paths: Sequence[Location]) -> Iterator[Verdict]:
    """Read and hash each shard: one verdict a shard in their order, as it is done; `paths` as from `data.paths.expand`.

    A shard is as it should be if its headers and its length agree, and its bytes have the SHA-256 and the number that
    the manifest beside it lists; one that no manifest lists can only be looked at for the former. A shard that the
    manifests list and that `paths` lack is no problem. Where all verdicts are good, `ShardSet.fingerprint` and what is
    made of it (a run's `data_fingerprint`) are true and not just believed. Raises ShardError for a manifest that is
    none; whatever is wrong with a shard, a missing one too, is its verdict's problem.
    """
    manifests = {folder: listed_shards(folder) for folder in {path.parent for path in paths}}
    stated = {
        path.parent: {name: (size, sha256) for (name, size), sha256 in manifests[path.parent].items()} for path in paths
    }
    for path in paths:
        row = stated[path.parent].get(path.name)
        try:
            found = facts(path)
            sha256 = hash_of(path, found)
            yield Verdict(path, sha256, row is not None, _difference(row, found.num_bytes, sha256) or _damage(path))
        except (ShardError, OSError) as error:
            yield Verdict(path, "", row is not None, str(error))


def hash_of(path: Location, found: Facts) -> str:
    """SHA-256 of a shard's bytes, read in pieces; ShardError if it is no longer what `found` says of it."""
    if not isinstance(path, Url):
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256()
    for start in range(0, found.num_bytes, CHUNK_BYTES):
        stop = min(start + CHUNK_BYTES, found.num_bytes)
        digest.update(read_spans([Span(path, start, stop, found)])[0])
    return digest.hexdigest()


def _difference(row: tuple[int, str] | None, num_bytes: int, sha256: str) -> str | None:
    if row is None or row == (num_bytes, sha256):
        return None
    if row[0] != num_bytes:
        return f"has {num_bytes} bytes, its manifest says {row[0]}"
    return f"its bytes are not those that the manifest lists (sha256 {sha256[:12]}..., there {row[1][:12]}...)"


def _damage(path: Location) -> str | None:
    """What is wrong with its headers."""
    try:
        read_index(path)
    except ShardError as error:
        return str(error)
    return None
