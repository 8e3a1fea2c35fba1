"""Indices of shards on disk: the headers of a shard are parsed once and not at every start.

One file per shard in the cache's folder `index`. It is used if the shard still has the size and the time (or entity
tag) it had; whatever else is found there is ignored and written anew.
"""

import hashlib
import os
import random
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from ldm.data import derived
from ldm.data.errors import ShardError
from ldm.data.index import EmptyShard, Outline, ShardIndex, read_index
from ldm.data.objects import Facts, Location, Url
from ldm.data.open_files import file_limit
from ldm.data.progress import say, watched
from ldm.data.storage import facts

KIND = "shard index 2"
THREADS = 16
NAMED = 3  # shards in a message
# A file may change twice within a tick of its clock: an index made this soon after a change is not used later.
SETTLING_NS = 2 * 10**9


class Entry(NamedTuple):
    """What stays in memory of a shard: enough to count it, and to know whether it or its index was changed."""

    path: Location
    facts: Facts
    num_samples: int
    digest: str
    remark: str


def entries(paths: Sequence[Location]) -> list[Entry]:
    """The entry of each shard, from the cache, or else from the shard's headers; several are read at a time.

    Shards without samples are passed over in a line; ShardError if there are no others.
    """
    with ThreadPoolExecutor(min(THREADS, max(1, file_limit() // 32))) as pool:
        found: list[Entry | EmptyShard | None] = list(pool.map(_known, paths))
        missing = [place for place, entry in enumerate(found) if entry is None]
        random.Random(os.getpid()).shuffle(missing)  # processes that start together share the work
        made = pool.map(lambda place: _known(paths[place]) or _made(paths[place]), missing)
        for place, entry in zip(missing, watched(made, len(missing), "reading headers of shards"), strict=True):
            found[place] = entry
    held = [entry for entry in found if isinstance(entry, Entry)]
    _tell(held, [entry for entry in found if isinstance(entry, EmptyShard)])
    return held


def _tell(held: Sequence[Entry], empty: Sequence[EmptyShard]) -> None:
    """Print which shards are empty, and the remarks on the others."""
    some = "; ".join(str(shard) for shard in empty[:NAMED]) + ("; ..." if len(empty) > NAMED else "")
    if empty and not held:
        raise empty[0] if len(empty) == 1 else ShardError(f"none of {len(empty)} shards holds samples: {some}")
    if empty:
        say(f"{len(empty)} of {len(held) + len(empty)} shards hold no samples and are passed over: {some}")
    remarks = [f"{entry.path}: {entry.remark}" for entry in held if entry.remark]
    for remark in remarks[:NAMED]:
        say(remark)
    if len(remarks) > NAMED:
        say(f"... and the like of {len(remarks) - NAMED} more shards")


def open_index(entry: Entry, check: bool) -> ShardIndex:
    """The index of a shard, mapped; made again if its file is gone or damaged, which `check` looks for."""
    index = _mapped(entry, check)
    if index is not None:
        return index
    again = _read(entry.path)
    if (again.facts, again.digest) != (entry.facts, entry.digest):
        raise ShardError(f"{entry.path} changed while it was in use; start again")
    return again


def _known(path: Location) -> Entry | None:
    """The entry of a shard from the cache; None if its index is missing or out of date."""
    head = derived.read_head(_file(path))
    outline = head and _outline(path, head)
    if not outline or outline.facts != facts(path):
        return None
    settled = isinstance(path, Url) or int(outline.facts.stamp) + SETTLING_NS <= head["read_at_ns"]
    return _entry(path, outline) if settled else None


def _mapped(entry: Entry, check: bool) -> ShardIndex | None:
    """The index in the cache, if it is the one of this entry."""
    kept = derived.read(_file(entry.path), check)
    outline = kept and _outline(entry.path, kept[0])
    if not outline or (outline.facts, outline.digest) != (entry.facts, entry.digest):
        return None
    try:
        index = ShardIndex(entry.path, outline, kept[1])
    except (TypeError, ValueError):  # its arrays do not have the lengths of its outline
        return None
    return index if not check or index.is_consistent() else None


def _made(path: Location) -> Entry | EmptyShard:
    try:
        return _entry(path, _read(path).outline)
    except EmptyShard as empty:
        return empty


def _entry(path: Location, outline: Outline) -> Entry:
    return Entry(path, outline.facts, outline.num_samples, outline.digest, outline.remark)


def _read(path: Location) -> ShardIndex:
    """Read a shard's headers and keep the index."""
    read_at_ns = time.time_ns()
    index = read_index(path)
    outline = index.outline._asdict()
    head = {"kind": KIND, "place": _name(path), "read_at_ns": read_at_ns, **outline}
    derived.write(_file(path), head, [index.body])
    return index


def _file(path: Location) -> Path:
    return derived.cache_folder() / "index" / _name(path)


def _name(path: Location) -> str:
    name = path.place if isinstance(path, Url) else str(path)
    return hashlib.sha256(name.encode()).hexdigest()[:40]


def _outline(path: Location, head: dict[str, Any]) -> Outline | None:
    """The outline in a head of the cache, None if it is not one of this shard."""
    if head.get("kind") != KIND or head.get("place") != _name(path):
        return None
    try:
        values = {name: head[name] for name in Outline._fields}
        found = Outline(**{**values, "facts": Facts(*values["facts"]), "extensions": tuple(values["extensions"])})
        numbers = found.num_samples, found.num_members, head["read_at_ns"]
    except (KeyError, TypeError):
        return None
    return found if all(type(number) is int and number > 0 for number in numbers) else None
