"""Where every member of a tar shard lies, read once from its headers, and proof that the shard is whole.

Grouping follows webdataset: a member's key is its name up to the first dot after the last slash, the rest is its
extension, and neighbours with one key are one sample. Names become keys, never paths. Reads no member's content.
"""

import mmap
import re
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from data.errors import ShardError

BLOCK = 512
ZEROS = bytes(BLOCK)
NAME = re.compile(r"((?:.*/)?[^.]+)\.([^/]*)", re.DOTALL)
REGULAR = b"0\07"
MAX_EXTENDED_BYTES = 1 << 16  # of a header that only carries a long name or a few records
MAX_NAME_CHARS = 4096
MAX_EXTENSIONS = 1 << 10  # distinct ones in a shard
WITHOUT_CONTENT = b"123456"  # links, devices, folders, pipes


class Extent(NamedTuple):
    """A span of bytes in a file."""

    offset: int
    size: int


@dataclass(frozen=True)
class ShardIndex:
    """Samples and members of one shard; `array` is as small as numpy's and quicker to look into one by one."""

    path: Path
    num_bytes: int
    keys: tuple[str, ...]
    extensions: tuple[str, ...]  # the distinct ones
    first: array  # int64 [num_samples + 1]: sample i owns members first[i] .. first[i + 1]
    kind: array  # int16 [num_members], into `extensions`
    offset: array  # int64 [num_members]
    size: array  # int64 [num_members]

    def __len__(self) -> int:
        return len(self.keys)

    def members(self, sample: int) -> dict[str, Extent]:
        """The sample's members by extension."""
        span = range(self.first[sample], self.first[sample + 1])
        return {self.extensions[self.kind[i]]: Extent(self.offset[i], self.size[i]) for i in span}


def read_index(path: Path) -> ShardIndex:
    """Parse a shard's headers; raises ShardError unless every byte of it is accounted for."""
    num_bytes = path.stat().st_size
    if num_bytes == 0:
        raise ShardError(f"{path}: the file is empty")
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as tar:
        try:
            return _group(path, num_bytes, _walk(tar))
        except _Damage as damage:
            raise ShardError(f"{path}: {damage}") from None


class _Damage(Exception):
    """A reason, still without the file's name."""


def _group(path: Path, num_bytes: int, members: Iterator[tuple[str, Extent]]) -> ShardIndex:
    keys: dict[str, None] = {}
    extensions: dict[str, int] = {}
    first, kind, offset, size = array("q"), array("h"), array("q"), array("q")
    current, present = None, set()
    for name, extent in members:
        match = NAME.fullmatch(name)
        if match is None or (name.startswith("__") and name.endswith("__")):
            continue  # as webdataset does
        key, extension = match[1], match[2].lower()
        if key != current:
            if key in keys:
                raise _Damage(f"the key {key!r} occurs twice, so its members cannot be told apart")
            keys[key] = None
            current, present = key, set()
            first.append(len(kind))
        if extension in present:
            raise _Damage(f"the member {name!r} occurs twice")
        present.add(extension)
        if extensions.setdefault(extension, len(extensions)) == MAX_EXTENSIONS:
            raise _Damage(f"more than {MAX_EXTENSIONS} kinds of members")
        kind.append(extensions[extension])
        offset.append(extent.offset)
        size.append(extent.size)
    if not keys:
        raise _Damage("it holds no samples")
    first.append(len(kind))
    return ShardIndex(path, num_bytes, tuple(keys), tuple(extensions), first, kind, offset, size)


def _walk(tar: mmap.mmap) -> Iterator[tuple[str, Extent]]:
    """Name and extent of each regular member; checks that members fit, the end is marked, and only zeros follow."""
    end = len(tar)
    position = 0
    longer: dict[str, str] = {}  # what an extended header says about the next member
    while True:
        header = tar[position : position + BLOCK]
        if len(header) < BLOCK:
            raise _Damage(f"no end-of-archive marker at byte {position}: the file was cut short")
        if header == ZEROS:
            _check_tail(tar, position)
            return
        _check_sum(header, position)
        kind = header[156:157]
        size = int(longer.get("size") or _number(header[124:136], position))
        content = position + BLOCK
        if kind in WITHOUT_CONTENT:
            size = 0
        if kind in b"Lx" and size > MAX_EXTENDED_BYTES:
            raise _Damage(f"an extended header of {size} bytes at byte {position}, {MAX_EXTENDED_BYTES} allowed")
        if content + size > end:
            raise _Damage(f"member {_name(header)!r} ends at byte {content + size} of {end}: the file was cut short")
        position = content + -(-size // BLOCK) * BLOCK
        if kind in REGULAR:
            name = longer.get("path") or _name(header)
            if len(name) > MAX_NAME_CHARS:
                raise _Damage(f"a member's name of {len(name)} characters at byte {content}, {MAX_NAME_CHARS} allowed")
            yield name, Extent(content, size)
            longer = {}
        elif kind == b"L":
            longer["path"] = _text(tar[content : content + size])
        elif kind == b"x":
            longer |= _records(tar[content : content + size])
        elif kind in WITHOUT_CONTENT:
            longer = {}
        elif kind not in b"Kg":
            raise _Damage(f"member {_name(header)!r} has the unsupported tar type {kind!r}")


def _check_tail(tar: mmap.mmap, position: int) -> None:
    if len(tar) < position + 2 * BLOCK:
        raise _Damage(f"half an end-of-archive marker at byte {position}: the file was cut short")
    step = 1 << 20
    for start in range(position, len(tar), step):
        if tar[start : start + step].strip(b"\0"):
            raise _Damage(f"data follows a block of zeros at byte {position}: overwritten, or two archives in one file")


def _check_sum(header: bytes, position: int) -> None:
    stated = _number(header[148:156], position)
    if stated != sum(header) - sum(header[148:156]) + 8 * ord(" "):
        raise _Damage(f"damaged header at byte {position} (checksum)")


def _number(field: bytes, position: int) -> int:
    if field[0] & 0x80:  # base 256, for sizes beyond 8 GiB
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    digits = field.strip(b" \0") or b"0"
    if digits.strip(b"01234567"):  # int() would also take a sign
        raise _Damage(f"damaged header at byte {position} (number)")
    return int(digits, 8)


def _name(header: bytes) -> str:
    name = _text(header[:100])
    prefix = _text(header[345:500]) if header[257:263] == b"ustar\0" else ""
    return f"{prefix}/{name}" if prefix else name


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("utf-8", "backslashreplace")


def _records(content: bytes) -> dict[str, str]:
    """The records 'length key=value' of an extended header."""
    found = {}
    while content:
        length, _, _ = content.partition(b" ")
        if not length.isdigit() or len(length) > 9 or not 0 < int(length) <= len(content):
            raise _Damage("damaged extended header")
        key, _, value = content[len(length) + 1 : int(length) - 1].decode("utf-8", "backslashreplace").partition("=")
        if key.startswith("GNU.sparse"):
            raise _Damage("it holds sparse members")
        if key == "size" and not (value.isascii() and value.isdigit() and len(value) < 20):
            raise _Damage("damaged extended header")
        found[key] = value
        content = content[int(length) :]
    return found
