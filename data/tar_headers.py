"""The members of a tar archive from its headers alone, and proof that the archive is whole.

Works on anything that has a length and gives bytes by slice: a memory map, or a remote object read in windows.
"""

import zlib
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

BLOCK = 512
ZEROS = bytes(BLOCK)
REGULAR = b"0\x007"  # of today, of old archives, contiguous
WITHOUT_CONTENT = b"123456"  # links, devices, folders, pipes
HARD_LINK, LINKS = b"1", b"12"  # hard ones and symbolic ones
MAX_EXTENDED_BYTES = 1 << 16  # of a header that only carries a long name or a few records
MAX_NAME_CHARS = 4096
MAX_LENGTH_DIGITS = 9
ADLER_PRIME = 65521
MAX_TAIL_BYTES = 1 << 24  # of zeros behind the end: tar fills its last record, at most a few MiB


class Extent(NamedTuple):
    """A span of bytes in a file."""

    offset: int
    size: int


class Member(NamedTuple):
    """A regular member, or a link: `target` is then the member that a hard one stands for, empty for a symbolic one.

    `plain`: the block before its content says its whole name.
    """

    name: str
    extent: Extent
    plain: bool
    target: str | None


class Sliceable(Protocol):
    """Bytes by slice, in memory or not."""

    def __len__(self) -> int: ...

    def __getitem__(self, where: slice) -> bytes: ...


class Damage(Exception):
    """What is wrong with an archive, raised before its name is known."""


def walk(tar: Sliceable) -> Iterator[Member]:
    """Each regular member and each link; checks that members fit, the end is marked, and only zeros follow."""
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
        if kind in b"KLx" and size > MAX_EXTENDED_BYTES:
            raise Damage(f"an extended header of {size} bytes at byte {position}, {MAX_EXTENDED_BYTES} allowed")
        if content + size > end:
            raise Damage(f"member {_name(header)!r} ends at byte {content + size} of {end}: the file was cut short")
        position = content + -(-size // BLOCK) * BLOCK
        if kind in REGULAR or kind in LINKS:
            yield _member(header, Extent(content, size), longer, kind)
            longer = {}
        elif kind in EXTENDED:
            longer |= EXTENDED[kind](tar[content : content + size])
        elif kind in WITHOUT_CONTENT:
            longer = {}
        elif kind != b"g":
            raise Damage(f"member {_name(header)!r} has the unsupported tar type {kind!r}")


def _member(header: bytes, extent: Extent, longer: dict[str, str], kind: bytes) -> Member:
    own = _name(header)
    name = longer.get("path") or own
    if len(name) > MAX_NAME_CHARS:
        raise Damage(f"a member's name of {len(name)} characters at byte {extent.offset}, {MAX_NAME_CHARS} allowed")
    if kind in REGULAR:
        return Member(name, extent, name == own, None)
    return Member(name, extent, False, (longer.get("linkpath") or _text(header[157:257])) if kind == HARD_LINK else "")


def header_name(block: bytes, size: int) -> str | None:
    """The name in a block read again, None if it is not the header of a member of this size."""
    try:
        _check_sum(block, 0)
        return _name(block) if _number(block[124:136], 0) == size else None
    except Damage:
        return None


def is_archive(block: bytes) -> bool:
    """Whether a file's first block can begin an archive: a header, or zeros where it is empty."""
    try:
        _check_sum(block, 0)
    except Damage:
        return block == ZEROS
    return True


def _check_tail(tar: Sliceable, position: int) -> None:
    if len(tar) < position + 2 * BLOCK:
        raise Damage(f"half an end-of-archive marker at byte {position}: the file was cut short")
    if len(tar) - position > MAX_TAIL_BYTES:
        raise Damage(
            f"{len(tar) - position} bytes follow the end-of-archive marker at byte {position}: not copied whole"
        )
    step = 1 << 20
    for start in range(position, len(tar), step):
        if tar[start : start + step].strip(b"\0"):
            raise Damage(f"data follows a block of zeros at byte {position}: overwritten, or two archives in one file")


def _check_sum(header: bytes, position: int) -> None:
    if len(header) < BLOCK:
        raise Damage(f"half a header at byte {position}")
    stated = _number(header[148:156], position)
    # the low half of adler32 is 1 + the sum of the bytes, modulo a prime; many times faster than sum()
    found = (zlib.adler32(header[:148] + b" " * 8 + header[156:]) & 0xFFFF) - 1
    if (stated - found) % ADLER_PRIME:
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
    start = 0
    while start < len(content):
        space = content.find(b" ", start, start + MAX_LENGTH_DIGITS + 1)
        digits = content[start : max(start, space)]
        end = start + int(digits) if digits.isdigit() else start
        if not start < space < end <= len(content):
            raise Damage("damaged extended header")
        key, _, value = content[space + 1 : end - 1].decode("utf-8", "backslashreplace").partition("=")
        if key.startswith("GNU.sparse"):
            raise Damage("it holds sparse members")
        if key == "size" and not (value.isascii() and value.isdigit() and len(value) < 20):
            raise Damage("damaged extended header")
        found[key] = value
        start = end
    return found


EXTENDED: dict[bytes, Callable[[bytes], dict[str, str]]] = {
    b"L": lambda content: {"path": _text(content)},
    b"K": lambda content: {"linkpath": _text(content)},
    b"x": _records,
}
