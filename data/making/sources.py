"""Images to be put into shards, what is known about each, and what was seen beside them."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import NamedTuple

from ldm.data.errors import BadSample


class Problem(NamedTuple):
    """Why an image cannot be used: a short constant phrase to count by, and what was seen."""

    kind: str
    reason: str

    @classmethod
    def of(cls, error: BadSample) -> "Problem":
        """The content of a BadSample, as a value that can be stored and sent to another process."""
        return cls(error.kind, str(error))


@dataclass(frozen=True, slots=True)
class Source:
    """One image. `problem` says why it cannot be used, if that is known already.

    `facts` is the text of a JSON object, which its .json member will hold: millions of them have to fit in memory.
    `raster` is the (width, height) that boxes among the facts were drawn at, to be compared with the image's own.
    """

    path: Path
    name: str  # no other source has the same
    facts: str
    problem: Problem | None = None
    raster: tuple[float, float] | None = None

    @property
    def rank(self) -> str:
        """A place in an order that mixes folders and depends on the name alone."""
        return hashlib.sha256(self.name.encode("utf-8", "surrogateescape")).hexdigest()

    @property
    def key(self) -> str:
        """A webdataset key: no dots, no slashes, short, and unlike any other image's."""
        stem = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "_" for c in PurePath(self.name).stem)
        return f"{stem[:60]}-{self.rank[:16]}"


class LeftOut(NamedTuple):
    """What is in the source and in no shard: a row of the manifest."""

    name: str
    kind: str
    reason: str


@dataclass(frozen=True)
class Sources:
    """All images of a source, the names of their classes in the order of the class numbers, and what else was seen.

    `left_out` are files and rows that are no images of the source; `notes` are sentences for whoever made it.
    """

    sources: list[Source]
    class_names: list[str] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
