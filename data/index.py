"""Where every member of a tar shard lies, read once from its headers.

Grouping follows webdataset: a member's key is its name up to the first dot after the last slash, the rest is its
extension, and neighbours with one key are one sample. What systems leave behind (names that begin with a dot, folders
of macOS and of NAS boxes) is no sample; a hard link is the member it names. Names become keys, never paths. Reads no
member's content.
"""

import hashlib
import mmap
from array import array
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from ldm.data.errors import ShardError
from ldm.data.file_kinds import recognised
from ldm.data.objects import Facts, Location, Url
from ldm.data.open_files import opened
from ldm.data.storage import Window, facts
from ldm.data.tar_headers import BLOCK, Damage, Extent, Member, Sliceable, is_archive, walk

SYSTEM_FOLDERS = frozenset(("__MACOSX", "@eaDir"))  # of macOS, of Synology
MAX_EXTENSIONS = 1 << 10  # distinct ones in a shard


class Outline(NamedTuple):
    """What is known about a shard without its index. `digest` is a SHA-256 over the content of the index.

    `plain`: the header before each member says its whole name. `remark` is what a user should know of it, or empty.
    """

    facts: Facts
    num_samples: int
    num_members: int
    extensions: tuple[str, ...]  # the distinct ones
    digest: str
    plain: bool
    remark: str


class EmptyShard(ShardError):
    """An archive that is whole but holds no samples."""


class NoSamples(Damage):
    """As EmptyShard, raised before the name of the shard is known."""


class Keys(Sequence[str]):
    """The samples' keys, decoded one by one from their text; `ends` are where each stops in it."""

    def __init__(self, text: memoryview, ends: memoryview):
        self._text = text
        self._ends = ends

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, sample: int) -> str:  # type: ignore[override]  # no slices: nobody takes any
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
            parts.append(body[:length].cast(code))  # type: ignore[call-overload]  # one of "qIH"
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

    def is_consistent(self) -> bool:
        """Whether all offsets and numbers are valid for the shard and for this index."""
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
        raise ShardError(f"{path}: the file is empty; copy or download it again")
    if isinstance(path, Url):
        return _read(path, found, Window(path, found))
    with opened(path) as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as tar:
        return _read(path, found, tar)


def _read(path: Location, found: Facts, tar: Sliceable) -> ShardIndex:
    try:
        return ShardIndex(path, *pack(found, walk(tar)))
    except NoSamples as empty:
        raise EmptyShard(f"{path}: {empty}") from None
    except Damage as damage:
        head = tar[:BLOCK]
        what = None if is_archive(head) else recognised(head)
        raise ShardError(f"{path}: {what or damage}") from None


def split_name(name: str) -> tuple[str, str] | None:
    """(key, extension) of a member, None for one that is of no sample."""
    base = name.rfind("/") + 1
    dot = name.find(".", base)
    if dot <= base or (name.startswith("__") and name.endswith("__")):
        return None  # as webdataset does; a name that begins with a dot is hidden
    if ("__MACOSX/" in name or "@eaDir/" in name) and not SYSTEM_FOLDERS.isdisjoint(name.split("/")[:-1]):
        return None
    return name[:dot], name[dot + 1 :].lower()


class Packer:
    """Members in their order, grouped into samples."""

    def __init__(self) -> None:
        self.keys: dict[str, int] = {}  # the samples' numbers
        self.extensions: dict[str, int] = {}
        self.first, self.kind, self.offset, self.size = array("q"), array("H"), array("q"), array("q")
        self.plain = True
        self.others: list[str] = []  # members of no sample
        self.links: list[str] = []  # those that are not read
        self._current: str | None = None
        self._present: set[str] = set()

    def add(self, member: Member) -> None:
        """Take the next member; raises Damage if it cannot be distinguished from others."""
        parts = split_name(member.name)
        if parts is None:
            self.others.append(member.name)
            return
        extent = member.extent if member.target is None else self._find(member.target)
        if extent is None:
            self.links.append(member.name)
            return
        key, extension = parts
        if key != self._current:
            if key in self.keys:
                raise Damage(f"the key {key!r} occurs twice, so its members cannot be told apart")
            self.keys[key] = len(self.keys)
            self._current, self._present = key, set()
            self.first.append(len(self.kind))
        if extension in self._present:
            raise Damage(f"the member {member.name!r} occurs twice")
        self._present.add(extension)
        if self.extensions.setdefault(extension, len(self.extensions)) == MAX_EXTENSIONS:
            raise Damage(
                f"more than {MAX_EXTENSIONS} kinds of members, such as {extension[:80]!r}; the extension begins at a "
                "name's first dot, so names may have no other (scripts/make_shards.py makes such shards)"
            )
        self.kind.append(self.extensions[extension])
        self.offset.append(extent.offset)
        self.size.append(extent.size)
        self.plain &= member.plain

    def _find(self, name: str) -> Extent | None:
        """Where an earlier member lies."""
        key, extension = split_name(name) or ("", "")
        sample, kind = self.keys.get(key), self.extensions.get(extension)
        if sample is None or kind is None:
            return None
        end = self.first[sample + 1] if sample + 1 < len(self.first) else len(self.kind)
        for place in range(self.first[sample], end):
            if self.kind[place] == kind:
                return Extent(self.offset[place], self.size[place])
        return None

    def remark(self) -> str:
        """What a user should know of the shard."""
        if not self.links:
            return ""
        return (
            f"{len(self.links)} links to what is not a member before them are not read ({_some(self.links)}); pack the "
            "files themselves: tar -h follows symbolic links, tar --hard-dereference hard ones"
        )


def pack(found: Facts, members: Iterator[Member]) -> tuple[Outline, memoryview]:
    """Group members into samples; the outline and the block of bytes that ShardIndex looks into."""
    packed = Packer()
    for member in members:
        packed.add(member)
    keys, extensions = packed.keys, packed.extensions
    if not keys:
        there = [*packed.others, *packed.links]
        names = f", only {_some(there)}; a sample's members are named KEY.EXTENSION" if there else ""
        raise NoSamples(f"it holds no samples{names}")
    packed.first.append(len(packed.kind))
    digest = hashlib.sha256("\n".join([*keys, "", *extensions]).encode())
    for values in (packed.first, packed.kind, packed.offset, packed.size):
        digest.update(values)
    texts = [key.encode() for key in keys]
    ends = np.cumsum([len(text) for text in texts]).astype("<u4")
    numbers = [packed.first.tobytes(), packed.offset.tobytes(), packed.size.tobytes(), ends.tobytes()]
    body = b"".join([*numbers, packed.kind.tobytes(), *texts])
    outline = Outline(
        found, len(keys), len(packed.kind), tuple(extensions), digest.hexdigest(), packed.plain, packed.remark()
    )
    return outline, memoryview(body)


def _some(names: Sequence[str]) -> str:
    """The first few names."""
    return ", ".join(repr(name[:80]) for name in names[:3]) + (", ..." if len(names) > 3 else "")
