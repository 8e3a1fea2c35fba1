"""Where shards lie: local files, or remote objects that fsspec reads from s3, gcs, http and memory.

Facts about them, and reads of many spans at once. A remote read that fails is tried again and in the end is an error
that names the object. Credentials and endpoints are the business of fsspec and its clients.
"""

import posixpath
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import fsspec

from data.addresses import without_secrets
from data.errors import ShardError

SCHEMES = ("s3", "gs", "gcs", "http", "https", "memory")
PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)  # seconds before each further attempt
READ_AHEAD_BYTES = 1 << 20
MAX_WHOLE_BYTES = 1 << 26
# What names the version of an object, by the file systems' own names, the most telling first.
STAMPS = ("ETag", "etag", "Last-Modified", "LastModified", "updated", "mtime", "created")
DENIED = (400, 401, 403, 404, 410)

Found = TypeVar("Found")


class MissingShard(ShardError):
    """An object that is not there."""


@dataclass(frozen=True, repr=False)
class Url:
    """A remote object or folder, with the names that a Path has; as a text it is without its password and query."""

    text: str

    def __str__(self) -> str:
        return without_secrets(self.text)

    __repr__ = __str__

    def __truediv__(self, name: str) -> "Url":
        return Url(f"{self.text}/{name}")

    @property
    def name(self) -> str:
        """The last part, without the query that a signed URL has."""
        return posixpath.basename(self.text.partition("?")[0])

    @property
    def parent(self) -> "Url":
        """The folder it lies in."""
        return Url(posixpath.dirname(self.text.partition("?")[0]))


Location = Path | Url


class Facts(NamedTuple):
    """What tells a file from a changed one: its size, and its modification time or entity tag."""

    num_bytes: int
    stamp: str


class Span(NamedTuple):
    """Bytes start .. stop of a remote object."""

    url: Url
    start: int
    stop: int


def local_facts(status: Any) -> Facts:
    """The facts in what `os.stat` or `os.fstat` returned."""
    return Facts(status.st_size, str(status.st_mtime_ns))


def facts(location: Location) -> Facts:
    """Size and version of a file or an object; ShardError if a remote one cannot be asked for them."""
    if isinstance(location, Url):
        return _asked(location, lambda: _remote_facts(location))
    return local_facts(location.stat())


def matching(pattern: Url) -> list[Url]:
    """Objects whose names match a glob, in alphabetical order; ShardError where the names cannot be listed."""
    system, path = _system(pattern)
    found = _asked(pattern, lambda: system.glob(path))
    return [Url(system.unstrip_protocol(name)) for name in sorted(found)]


def read_whole(location: Location) -> bytes | None:
    """All bytes of a small file, None if there is none."""
    try:
        size = facts(location).num_bytes
    except (FileNotFoundError, MissingShard):
        return None
    if size > MAX_WHOLE_BYTES:
        raise ShardError(f"{location}: {size} bytes, at most {MAX_WHOLE_BYTES} are read")
    return read_spans([Span(location, 0, size)])[0] if isinstance(location, Url) else location.read_bytes()


def read_spans(spans: Sequence[Span]) -> list[bytes]:
    """The bytes of all spans, asked for at the same time; those that fail are asked for again."""
    found: dict[int, bytes] = {}
    _repeat(lambda: _read_missing(spans, found))
    return [found[place] for place in range(len(spans))]


class Window:
    """The bytes of a remote object by slice; what lies behind what is asked for is read ahead."""

    def __init__(self, url: Url, num_bytes: int):
        self.url = url
        self.num_bytes = num_bytes
        self._start = 0
        self._content = b""

    def __len__(self) -> int:
        return self.num_bytes

    def __getitem__(self, where: slice) -> bytes:
        start, stop, _ = where.indices(self.num_bytes)
        if start < self._start or stop > self._start + len(self._content):
            until = min(self.num_bytes, max(stop, start + READ_AHEAD_BYTES))
            [self._content] = read_spans([Span(self.url, start, until)])
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
    return Facts(int(info["size"]), next((str(info[name]) for name in STAMPS if info.get(name)), ""))


def _read_missing(spans: Sequence[Span], found: dict[int, bytes]) -> None:
    """Read the spans that `found` lacks; _Trouble with the first that failed, of those that will fail again if any."""
    systems: dict[int, tuple[Any, list[int], list[str]]] = {}
    for place in range(len(spans)):
        if place not in found:
            system, path = _system(spans[place].url)
            _, places, paths = systems.setdefault(id(system), (system, [], []))
            places.append(place)
            paths.append(path)
    troubles = []
    for system, places, paths in systems.values():
        contents = _cat(system, paths, [spans[place] for place in places])
        for place, content in zip(places, contents, strict=True):
            if isinstance(content, Exception):
                troubles.append(_Trouble(spans[place].url, content))
            else:
                found[place] = content
    if troubles:
        raise next((trouble for trouble in troubles if trouble.is_final), troubles[0])


def _cat(system: Any, paths: list[str], spans: Sequence[Span]) -> list[bytes | Exception]:
    starts, stops = [span.start for span in spans], [span.stop for span in spans]
    try:
        contents = system.cat_ranges(paths, starts, stops, on_error="return")
    except Exception as error:  # file systems raise whatever their clients do
        return [error] * len(spans)
    return [_of_length(content, span) for content, span in zip(contents, spans, strict=True)]


def _of_length(content: bytes | Exception, span: Span) -> bytes | Exception:
    if isinstance(content, Exception) or len(content) == span.stop - span.start:
        return content
    if len(content) > span.stop - span.start:
        return ShardError(f"{span.url}: the server sends all of it where a part is asked for; byte ranges are needed")
    return ShardError(f"{span.url} changed while it was in use; start again")


# -- trying again ----------------------------------------------------------------------------------------------------


class _Trouble(Exception):
    """What a client raised over an object."""

    def __init__(self, url: Url, error: Exception):
        self.url = url
        self.error = error

    @property
    def is_missing(self) -> bool:
        """Whether there is no such object; to fsspec's http, whatever goes wrong is a missing file."""
        cause = self.error.__cause__
        told = cause is None or not self.url.text.startswith("http") or getattr(cause, "status", 0) in DENIED
        return isinstance(self.error, FileNotFoundError) and told

    @property
    def is_final(self) -> bool:
        """Whether asking again is of no use."""
        return self.is_missing or isinstance(self.error, PermissionError | NotImplementedError | ShardError)

    def report(self) -> ShardError:
        """The one line for the user."""
        if isinstance(self.error, ShardError):
            return self.error
        if self.is_missing:
            return MissingShard(f"{self.url}: there is no such object")
        reason = f"{type(self.error).__name__}: {self.error}".splitlines()[0]
        tries = "" if self.is_final else f" in {len(PAUSES) + 1} attempts"
        return ShardError(f"{self.url}: cannot be read{tries} ({reason})")


def _asked(url: Url, action: Callable[[], Found]) -> Found:
    """What `action` returns about an object, tried again while it fails in a way that may pass."""

    def once() -> Found:
        try:
            return action()
        except Exception as error:  # file systems raise whatever their clients do
            raise _Trouble(url, error) from error

    return _repeat(once)


def _repeat(action: Callable[[], Found]) -> Found:
    pauses = iter(PAUSES)
    while True:
        try:
            return action()
        except _Trouble as trouble:
            pause = next(pauses, None)
            if pause is None or trouble.is_final:
                raise trouble.report() from trouble.error
            time.sleep(pause)
