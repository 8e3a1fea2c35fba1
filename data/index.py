"""Where every member of a tar shard lies, read once from its headers.

Grouping follows webdataset: a member's key is its name up to the first dot after the last slash, the rest is its
extension, and neighbours with one key are one sample. Names become keys, never paths. Reads no member's content.
"""

import hashlib
import mmap
import re
from array import array
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from data.errors import ShardError
from data.storage import Facts, Location, Url, Window, facts
from data.tar_headers import Damage, Extent, walk

NAME = re.compile(r"((?:.*/)?[^.]+)\.([^/]*)", re.DOTALL)
MAX_EXTENSIONS = 1 << 10  # distinct ones in a shard


class Outline(NamedTuple):
    """What is known of a shard without its index. `digest` is a SHA-256 over all that the index says."""

    facts: Facts
    num_samples: int
    num_members: int
    extensions: tuple[str, ...]  # the distinct ones
    digest: str


class Keys(Sequence[str]):
    """The samples' keys, decoded one by one from their text; `ends` are where each stops in it."""

    def __init__(self, text: memoryview, ends: memoryview):
        self._text = text
        self._ends = ends

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, sample: int) -> str:
        sample = range(len(self))[sample]
        start = self._ends[sample - 1] if sample else 0
        return str(self._text[start : self._ends[sample]], "utf-8")


class ShardIndex:
    """Samples and members of one shard, as views of one block of bytes: just read, or a mapped file."""

    def __init__(self, path: Location, outline: Outline, body: memoryview):
        num_samples, num_members = outline.num_samples, outline.num_members
        self.path = path
        self.outline = outline
        self.body = body
        self.facts = outline.facts
        self.extensions = outline.extensions
        self.digest = outline.digest
        # memoryviews are quicker to look into one by one than numpy's arrays
        lengths = [8 * (num_samples + 1), 8 * num_members, 8 * num_members, 4 * num_samples, 2 * num_members]
        parts = []
        for length, code in zip(lengths, "qqqIH", strict=True):
            parts.append(body[:length].cast(code))
            body = body[length:]
        self.first, self.offset, self.size, ends, self.kind = parts  # sample i owns members first[i] .. first[i + 1]
        self.keys = Keys(body, ends)
        self._ends = ends
        self._text = body

    def __len__(self) -> int:
        return len(self.keys)

    def members(self, sample: int) -> dict[str, Extent]:
        """The sample's members by extension."""
        span = range(self.first[sample], self.first[sample + 1])
        return {self.extensions[self.kind[i]]: Extent(self.offset[i], self.size[i]) for i in span}

    def is_sound(self) -> bool:
        """Whether all that it says lies within the shard and within itself."""
        first, offset, size, ends, kind = map(np.asarray, (self.first, self.offset, self.size, self._ends, self.kind))
        return bool(
            len(first) == len(ends) + 1 > 1
            and first[0] == 0
            and first[-1] == len(offset)
            and (np.diff(first) > 0).all()
            and (np.diff(ends.astype(np.int64), prepend=0) > 0).all()
            and ends[-1] == len(self._text)
            and (kind < len(self.extensions)).all()
            and (offset > 0).all()
            and (size >= 0).all()
            and (offset <= self.facts.num_bytes - size).all()
        )


def read_index(path: Location, known: Facts | None = None) -> ShardIndex:
    """Parse a shard's headers; raises ShardError unless every byte of it is accounted for."""
    found = known or facts(path)
    if found.num_bytes == 0:
        raise ShardError(f"{path}: the file is empty")
    try:
        if isinstance(path, Url):
            return ShardIndex(path, *pack(found, walk(Window(path, found.num_bytes))))
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as tar:
            return ShardIndex(path, *pack(found, walk(tar)))
    except Damage as damage:
        raise ShardError(f"{path}: {damage}") from None


def pack(found: Facts, members: Iterator[tuple[str, Extent]]) -> tuple[Outline, memoryview]:
    """Group members into samples; the outline and the block of bytes that ShardIndex looks into."""
    keys: dict[str, None] = {}
    extensions: dict[str, int] = {}
    first, kind, offset, size = array("q"), array("H"), array("q"), array("q")
    current, present = None, set()
    for name, extent in members:
        match = NAME.fullmatch(name)
        if match is None or (name.startswith("__") and name.endswith("__")):
            continue  # as webdataset does
        key, extension = match[1], match[2].lower()
        if key != current:
            if key in keys:
                raise Damage(f"the key {key!r} occurs twice, so its members cannot be told apart")
            keys[key] = None
            current, present = key, set()
            first.append(len(kind))
        if extension in present:
            raise Damage(f"the member {name!r} occurs twice")
        present.add(extension)
        if extensions.setdefault(extension, len(extensions)) == MAX_EXTENSIONS:
            raise Damage(f"more than {MAX_EXTENSIONS} kinds of members")
        kind.append(extensions[extension])
        offset.append(extent.offset)
        size.append(extent.size)
    if not keys:
        raise Damage("it holds no samples")
    first.append(len(kind))
    digest = hashlib.sha256("\n".join([*keys, "", *extensions]).encode())
    for values in (first, kind, offset, size):
        digest.update(values)
    texts = [key.encode() for key in keys]
    ends = np.cumsum([len(text) for text in texts]).astype("<u4")
    body = b"".join([first.tobytes(), offset.tobytes(), size.tobytes(), ends.tobytes(), kind.tobytes(), *texts])
    return Outline(found, len(keys), len(kind), tuple(extensions), digest.hexdigest()), memoryview(body)
