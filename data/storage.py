"""Where shards lie: local files, or remote objects that fsspec reads from s3, gcs, http and memory.

Facts about them, and reads of many spans at once. A remote read that fails is tried again and in the end is an error
that names the object. Credentials and endpoints are the business of fsspec and its clients.
"""

from collections.abc import Sequence
from typing import Any

import fsspec

from ldm.data import ranges
from ldm.data.attempts import MissingShard, Trouble, asked, repeat
from ldm.data.errors import ShardError
from ldm.data.objects import Facts, Location, Span, Url, local_facts

READ_AHEAD_BYTES = 1 << 20
MAX_WHOLE_BYTES = 1 << 26


def facts(location: Location) -> Facts:
    """Size and version of a file or an object; ShardError if a remote one does not answer."""
    if isinstance(location, Url):
        return asked(location, lambda: _remote_facts(location))
    return local_facts(location.stat())


def matching(pattern: Url) -> list[Url]:
    """Objects whose names match a glob, in alphabetical order; ShardError where the names cannot be listed."""
    system, path = _system(pattern)
    found = asked(pattern, lambda: system.glob(path))
    return [Url(system.unstrip_protocol(name)) for name in sorted(found)]


def read_whole(location: Location) -> bytes | None:
    """All bytes of a small file, None if there is none."""
    try:
        found = facts(location)
    except (FileNotFoundError, MissingShard):
        return None
    if found.num_bytes > MAX_WHOLE_BYTES:
        raise ShardError(f"{location}: {found.num_bytes} bytes, at most {MAX_WHOLE_BYTES} are read")
    if isinstance(location, Url):
        return read_spans([Span(location, 0, found.num_bytes, found)])[0] if found.num_bytes else b""
    return location.read_bytes()


def read_spans(spans: Sequence[Span]) -> list[bytes]:
    """The bytes of all spans, requested at the same time; failed requests are repeated."""
    found: dict[int, bytes] = {}
    repeat(lambda: _read_missing(spans, found))
    return [found[place] for place in range(len(spans))]


class Window:
    """The bytes of a remote object by slice; it reads ahead of the requested bytes."""

    def __init__(self, url: Url, found: Facts):
        self.url = url
        self.facts = found
        self.num_bytes = found.num_bytes
        self._start = 0
        self._content = b""

    def __len__(self) -> int:
        return self.num_bytes

    def __getitem__(self, where: slice) -> bytes:
        start, stop, _ = where.indices(self.num_bytes)
        if start < self._start or stop > self._start + len(self._content):
            until = min(self.num_bytes, max(stop, start + READ_AHEAD_BYTES))
            [self._content] = read_spans([Span(self.url, start, until, self.facts)])
            self._start = start
        return self._content[start - self._start : stop - self._start]


# -- fsspec ----------------------------------------------------------------------------------------------------------


def _system(url: Url) -> tuple[Any, str]:
    """The file system of a URL (fsspec keeps one per process) and the object's name in it."""
    try:
        return fsspec.core.url_to_fs(url.text)
    except ImportError as error:
        raise ShardError(f"{url}: {error}") from error


def _remote_facts(url: Url) -> Facts:
    system, path = _system(url)
    info = system.info(path)
    if info["type"] == "directory":
        raise ShardError(f"{url} is a folder; name its shards, such as {url}/*.tar")
    if info.get("size") is None:
        raise ShardError(f"{url}: the server does not say how many bytes it has, so parts of it cannot be read")
    return Facts(int(info["size"]), ranges.stamp_of(info))


def _read_missing(spans: Sequence[Span], found: dict[int, bytes]) -> None:
    """Read the spans that `found` lacks; raises the first error as Trouble, a permanent one before transient ones."""
    systems: dict[int, tuple[Any, list[int], list[str]]] = {}
    for place in range(len(spans)):
        if place not in found:
            system, path = _system(spans[place].url)
            _, places, paths = systems.setdefault(id(system), (system, [], []))
            places.append(place)
            paths.append(path)
    troubles = []
    for system, places, paths in systems.values():
        contents = ranges.read(system, paths, [spans[place] for place in places])
        for place, content in zip(places, contents, strict=True):
            if isinstance(content, BaseException):
                troubles.append(Trouble(spans[place].url, content))
            else:
                found[place] = content
    if troubles:
        raise next((trouble for trouble in troubles if trouble.is_final), troubles[0])
