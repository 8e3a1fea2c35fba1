"""The process that copies remote shards to a local disk while a run reads them: ``python -m ldm.data.copying``.

A line of JSON on its standard input says what to copy. It ends when that closes, as it does where the run ends.
"""

import fcntl
import hashlib
import json
import os
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ldm.data.errors import ShardError
from ldm.data.index import read_index
from ldm.data.local_copies import GB, LocalCopies
from ldm.data.objects import Facts, Span, Url
from ldm.data.progress import say
from ldm.data.storage import read_spans

PIECE_BYTES = 1 << 24
TOUCH_SECONDS = 3600.0
UNUSED_SECONDS = 24 * 3600.0  # a copy that no run has touched for so long makes room for others
LOCK = "copying.lock"


def copy_all(copies: LocalCopies, jobs: Sequence[Mapping[str, Any]]) -> None:
    """Copy what is not there yet, until the bound is reached; one process at a time copies into a folder."""
    own = [_place(copies, job) for job in jobs]
    with (copies.folder / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for partial in copies.folder.glob("*.partial"):
            partial.unlink()  # of a process that was killed
        touch(own)
        for job in jobs:
            url, facts = Url(job["url"]), Facts(*job["facts"])
            if copies.find(url, facts):
                continue
            if not _make_room(copies, facts.num_bytes, own):
                there = sum(path.exists() for path in own)
                say(f"data.cache_dir: {there} of {len(own)} shards fit into data.cache_dir_gb; the others stay remote")
                return
            try:
                _copy(copies.path(url, facts), url, facts, job["sha256"], job["headers"])
            except ShardError as error:
                say(f"data.cache_dir: no copy of {url}: {error}")
            except OSError as error:
                say(f"data.cache_dir: no more copies, {copies.folder}: {error.strerror}")
                return
    there = sum(path.exists() for path in own)
    say(f"data.cache_dir: {there} of {len(own)} shards are read from the local disk from now on")


def touch(paths: Sequence[Path]) -> None:
    """Mark these copies as in use."""
    for path in paths:
        if path.exists():
            path.touch()


def _place(copies: LocalCopies, job: Mapping[str, Any]) -> Path:
    return copies.path(Url(job["url"]), Facts(*job["facts"]))


def _copy(target: Path, url: Url, facts: Facts, sha256: str | None, headers: str) -> None:
    """Raises ShardError unless the bytes that came are those of this version."""
    partial = target.with_suffix(".partial")
    digest = hashlib.sha256()
    try:
        with partial.open("wb") as file:
            for start in range(0, facts.num_bytes, PIECE_BYTES):
                stop = min(start + PIECE_BYTES, facts.num_bytes)
                [piece] = read_spans([Span(url, start, stop, facts)])
                digest.update(piece)
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        if sha256 and digest.hexdigest() != sha256:
            raise ShardError("its bytes have another hash than its manifest says")
        if not sha256 and read_index(partial).digest != headers:
            raise ShardError("it changed while it was in use")
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def _make_room(copies: LocalCopies, wanted: int, own: Sequence[Path]) -> bool:
    """Whether `wanted` bytes fit, once copies of other data that no run uses any more are deleted."""
    held = {path: path.stat() for path in copies.folder.glob("*.tar")}
    total = sum(status.st_size for status in held.values())
    for path in sorted(held, key=lambda path: held[path].st_mtime):
        if total + wanted <= copies.max_bytes:
            break
        if path not in own and held[path].st_mtime < time.time() - UNUSED_SECONDS:
            path.unlink(missing_ok=True)
            total -= held[path].st_size
    return total + wanted <= copies.max_bytes


def _end_with_the_run() -> None:
    sys.stdin.read()
    os._exit(0)  # in the middle of a copy too: the next process removes what it left


def main() -> None:
    """Copy, then mark the copies as in use once an hour."""
    told = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_the_run, daemon=True).start()
    copies = LocalCopies(told["folder"], told["max_bytes"] / GB)
    copy_all(copies, told["jobs"])
    while True:
        time.sleep(TOUCH_SECONDS)
        touch([_place(copies, job) for job in told["jobs"]])


if __name__ == "__main__":
    main()
