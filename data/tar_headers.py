"""The members of a tar archive from its headers alone, and proof that the archive is whole.

Works on anything that has a length and gives bytes by slice: a memory map, or a remote object read in windows.
"""

from collections.abc import Iterator
from typing import NamedTuple, Protocol

BLOCK = 512
ZEROS = bytes(BLOCK)
REGULAR = b"0\x007"  # of today, of old archives, contiguous
WITHOUT_CONTENT = b"123456"  # links, devices, folders, pipes
MAX_EXTENDED_BYTES = 1 << 16  # of a header that only carries a long name or a few records
MAX_NAME_CHARS = 4096


class Extent(NamedTuple):
    """A span of bytes in a file."""

    offset: int
    size: int


class Sliceable(Protocol):
    """Bytes by slice, in memory or not."""

    def __len__(self) -> int: ...

    def __getitem__(self, where: slice) -> bytes: ...


class Damage(Exception):
    """What is wrong with an archive, still without its name."""


def walk(tar: Sliceable) -> Iterator[tuple[str, Extent]]:
    """Name and extent of each regular member; checks that members fit, the end is marked, and only zeros follow."""
    end = len(tar)
    position = 0
    longer: dict[str, str] = {}  # what an extended header says about the next member
    while True:
        header = tar[position : position + BLOCK]
        if len(header) < BLOCK:
            raise Damage(f"no end-of-archive marker at byte {position}: the file was cut short")
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
            raise Damage(f"an extended header of {size} bytes at byte {position}, {MAX_EXTENDED_BYTES} allowed")
        if content + size > end:
            raise Damage(f"member {_name(header)!r} ends at byte {content + size} of {end}: the file was cut short")
        position = content + -(-size // BLOCK) * BLOCK
        if kind in REGULAR:
            name = longer.get("path") or _name(header)
            if len(name) > MAX_NAME_CHARS:
                raise Damage(f"a member's name of {len(name)} characters at byte {content}, {MAX_NAME_CHARS} allowed")
            yield name, Extent(content, size)
            longer = {}
        elif kind == b"L":
            longer["path"] = _text(tar[content : content + size])
        elif kind == b"x":
            longer |= _records(tar[content : content + size])
        elif kind in WITHOUT_CONTENT:
            longer = {}
        elif kind not in b"Kg":
            raise Damage(f"member {_name(header)!r} has the unsupported tar type {kind!r}")


def is_header(block: bytes, size: int) -> bool:
    """Whether a block read again is still the header of a member of this size."""
    try:
        _check_sum(block, 0)
        return _number(block[124:136], 0) == size
    except Damage:
        return False


def _check_tail(tar: Sliceable, position: int) -> None:
    if len(tar) < position + 2 * BLOCK:
        raise Damage(f"half an end-of-archive marker at byte {position}: the file was cut short")
    step = 1 << 20
    for start in range(position, len(tar), step):
        if tar[start : start + step].strip(b"\0"):
            raise Damage(f"data follows a block of zeros at byte {position}: overwritten, or two archives in one file")


def _check_sum(header: bytes, position: int) -> None:
    stated = _number(header[148:156], position)
    if stated != sum(header) - sum(header[148:156]) + 8 * ord(" "):
        raise Damage(f"damaged header at byte {position} (checksum)")


def _number(field: bytes, position: int) -> int:
    if field[0] & 0x80:  # base 256, for sizes beyond 8 GiB
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    digits = field.strip(b" \0") or b"0"
    if digits.strip(b"01234567"):  # int() would also take a sign
        raise Damage(f"damaged header at byte {position} (number)")
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
            raise Damage("damaged extended header")
        key, _, value = content[len(length) + 1 : int(length) - 1].decode("utf-8", "backslashreplace").partition("=")
        if key.startswith("GNU.sparse"):
            raise Damage("it holds sparse members")
        if key == "size" and not (value.isascii() and value.isdigit() and len(value) < 20):
            raise Damage("damaged extended header")
        found[key] = value
        content = content[int(length) :]
    return found
