"""A text encoder that is not loaded until a caption needs it: T5-XXL is 10 GB for each rank to read, and a run whose
tokens all come from a cache never needs it.

Until then its description is that of an earlier load, cached in the folder `encoders` of $LDM_CACHE and valid while
each file of the encoder's folder has its former size and times.
"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from ldm.errors import UserError
from ldm.files import read_json, write_json
from ldm.networks.downloads import cache_folder

KIND = "text encoder 1"
# A file may change twice within a tick of its clock: what was read this soon after a change is not cached.
SETTLING_NS = 2 * 10**9


class Described(Protocol):
    """The description of a text encoder, loaded or not; `identity` is what its outputs depend on."""

    name: str
    width: int
    max_tokens: int
    pooled_width: int  # 0: it gives no vector

    @property
    def identity(self) -> dict[str, Any]: ...

    def read(self) -> Any:
        """The text encoder itself, loaded if need be."""


class Source(NamedTuple):
    """A folder, the arguments it is read with, and how: `load()` reads the encoder."""

    folder: Path
    asked: Mapping[str, Any]
    load: Callable[[], Any]

    def files(self) -> dict[str, list[int]]:
        """Size and times of change, in nanoseconds, of each file."""
        found = {path.name: path.stat() for path in sorted(self.folder.glob("*")) if path.is_file()}
        return {name: [state.st_size, state.st_mtime_ns, state.st_ctime_ns] for name, state in found.items()}

    @property
    def note(self) -> Path:
        """The cache file of its description."""
        text = json.dumps([str(self.folder.resolve()), self.asked], sort_keys=True)
        return cache_folder() / "encoders" / f"{hashlib.sha256(text.encode()).hexdigest()[:40]}.json"


def find(source: Source) -> Described:
    """The encoder of `source`, not loaded if a cached description of the present files exists."""
    files = source.files()
    try:
        kept = read_json(source.note)
        if kept["kind"] == KIND and kept["files"] == files != {}:
            return Unread(source, files, **kept["facts"])
    except (OSError, ValueError, KeyError, TypeError):  # nothing cached, or a damaged or foreign file
        pass
    return Read(source)


class Unread:
    """A text encoder that is described in the cache but not loaded; `files` are the state of its folder then."""

    def __init__(
        self, source: Source, files: dict[str, list[int]], name: str, width: int, max_tokens: int, identity: dict
    ):
        self._source = source
        self._files = files
        self.name = name
        self.width = width
        self.max_tokens = max_tokens
        self.pooled_width = 0  # T5's, the only one that is read so, has no vector
        self.identity = identity

    def read(self) -> Any:
        """The encoder. Raises ValueError if its folder is no longer what it was."""
        return self._encoder

    @cached_property
    def _encoder(self) -> Any:
        before = self._source.files()
        encoder = self._source.load() if before == self._files else None
        if encoder is None or self._source.files() != self._files:
            raise UserError(
                f"conditioner.{self.name}.path={self._source.folder}: its files were changed after the run began; put "
                "back those that it began with, or start again"
            )
        return encoder


class Read:
    """A text encoder that has been loaded; its description is cached when its identity is first asked for."""

    def __init__(self, source: Source):
        self._source = source
        self._began_ns = time.time_ns()
        self._files = source.files()
        self._encoder = source.load()
        self.name = self._encoder.name
        self.width = self._encoder.width
        self.max_tokens = self._encoder.max_tokens
        self.pooled_width = self._encoder.pooled_width

    def read(self) -> Any:
        """The encoder."""
        return self._encoder

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What its outputs depend on."""
        identity = self._encoder.identity
        facts = {"name": self.name, "width": self.width, "max_tokens": self.max_tokens, "identity": identity}
        settled = all(max(times) + SETTLING_NS <= self._began_ns for _, *times in self._files.values())
        if settled and self._source.files() == self._files:
            with suppress(OSError):  # if it cannot be cached, the next run loads the encoder again
                write_json(self._source.note, {"kind": KIND, "files": self._files, "facts": facts})
        return identity
