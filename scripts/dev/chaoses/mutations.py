"""Mutations for fuzzing: bytes changed anywhere, and structures parsed, changed and written again.

Every mutation is (content, rng) -> content. Those of BYTES know no format; the others keep a format's own sums right,
so that what is wrong gets past the first check. Our own, and not a fuzzing library's: each trial has to be drawn again
from its number alone, in a process that may have been killed.
"""

import json
import math
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any

BLOCK = 512
LENGTHS = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 0x7FFFFFFFFFFFFFFF)
# Values that a careless reader would execute, follow as a path, or fail on.
WORDS = (
    "pipe:touch CANARY", "file:///dev/zero", "/dev/zero", "../../../etc/passwd", "~nosuchuser/x", "${oc.env:HOME}",
    "!!python/object/apply:os.system ['touch CANARY']", "os.system", "builtins.exec", "local-dir:CANARY", "\x1b[2J",
    "\ufeff", "\x00", "\uffff", "\u202e", "NaN", "Infinity", "-0", "1e400", "9" * 5000, "A" * 100_000, "[" * 20_000,
    "{1..99999999}", "__literal_0__", "None", "true", "{}", "[]", "&a [*a]", "<<: *x", "=cmd|' /C calc'!A0",
)  # fmt: skip
VALUES = (
    None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63), 10**400, 0.5, -0.0, math.nan, math.inf, 1e308, "", "x", [], {},
    [[]], {"": None}, ["x"], [None], {"_target_": "os.system", "command": "touch CANARY"},
)  # fmt: skip

Mutation = Callable[[bytes, random.Random], bytes]


def flip(content: bytes, rng: random.Random) -> bytes:
    """A few bits."""
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 3, 20))):
        place = rng.randrange(len(changed))
        changed[place] ^= 1 << rng.randrange(8)
    return bytes(changed)


def cut(content: bytes, rng: random.Random) -> bytes:
    """Its end is missing."""
    return content[: rng.randrange(len(content))]


def lose(content: bytes, rng: random.Random) -> bytes:
    """A piece is missing."""
    start = rng.randrange(len(content))
    return content[:start] + content[start + rng.choice((1, 4, BLOCK, 5000)) :]


def gain(content: bytes, rng: random.Random) -> bytes:
    """A piece too many, of noise, zeros or words."""
    start = rng.randrange(len(content) + 1)
    size = rng.choice((1, 4, BLOCK, 5000))
    piece = rng.choice((rng.randbytes(size), bytes(size), b"\xff" * size, rng.choice(WORDS).encode()))
    return content[:start] + piece + content[start:]


def blank(content: bytes, rng: random.Random) -> bytes:
    """A piece is zeros."""
    start, size = rng.randrange(len(content)), rng.choice((1, 4, BLOCK, 5000))
    return content[:start] + bytes(len(content[start : start + size])) + content[start + size :]


def number(content: bytes, rng: random.Random) -> bytes:
    """What may be a length is an extreme one."""
    value, width = rng.choice(LENGTHS), rng.choice((1, 2, 4, 8))
    start = rng.randrange(max(1, min(len(content), rng.choice((64, 1000, 10**9)))))
    piece = (value & (1 << 8 * width) - 1).to_bytes(width, rng.choice(("little", "big")))
    return content[:start] + piece + content[start + width :]


def repeat(content: bytes, rng: random.Random) -> bytes:
    """A piece comes again and again."""
    start = rng.randrange(len(content))
    piece = content[start : start + rng.choice((1, 20, BLOCK, 5000))]
    return content[:start] + piece * rng.choice((2, 3, 100, 1000)) + content[start:]


def nothing(content: bytes, rng: random.Random) -> bytes:
    """An empty file, or a file of zeros."""
    return bytes(rng.choice((0, 1, 100, 10_240)))


# After these a whole sample is still the sample it was: nothing is moved in one piece to where another was.
IN_PLACE = (flip, cut, blank, nothing)
BYTES = (*IN_PLACE, lose, gain, number, repeat)


def words(content: bytes, rng: random.Random) -> bytes:
    """A word of a text is another one, or stands in another place."""
    parts = content.split(b" ") if rng.random() < 0.3 else content.splitlines(keepends=True)
    place = rng.randrange(len(parts) or 1)
    word = rng.choice(WORDS).encode()
    kept = [word] if rng.random() < 0.5 else [word, *parts[place : place + 1]]
    return (b" " if rng.random() < 0.3 else b"").join([*parts[:place], *kept, *parts[place + 1 :]])


def encoding(content: bytes, rng: random.Random) -> bytes:
    """The text as other systems write it."""
    name = rng.choice(("utf-16", "utf-16-le", "utf-32", "utf-8-sig", "cp037", "latin-1"))
    return content.decode("utf-8", "replace").encode(name, "replace")


TEXT = (*BYTES, words, encoding)


def tree(content: Any, rng: random.Random) -> Any:
    """A value of nested lists and mappings is another one, is gone, or stands under another name."""
    places = list(_places(content))
    if not places:
        return rng.choice(VALUES)
    holder, key = rng.choice(places)
    kind = rng.randrange(8)
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, dict):
        holder[rng.choice((*WORDS[:15], f"{key}x"))] = holder.pop(key)
    elif kind == 2:
        holder[key] = rng.choice(WORDS)
    elif kind == 3:
        nested: Any = holder[key]
        for _ in range(rng.choice((1, 60, 250))):
            nested = [nested]
        holder[key] = nested
    elif kind == 4 and isinstance(holder[key], int | float):
        holder[key] = holder[key] * rng.choice((-1, 2, 1000, 10**6)) + rng.choice((0, 1))
    else:
        holder[key] = rng.choice(VALUES)
    return content


def _places(node: Any) -> Iterator[tuple[Any, Any]]:
    for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        yield node, key
        yield from _places(value)


def json_tree(content: bytes, rng: random.Random) -> bytes:
    """JSON that is still JSON, of another shape."""
    return json.dumps(tree(json.loads(content), rng)).encode()


JSON = (*TEXT, json_tree, json_tree, json_tree)


def tar_header(content: bytes, rng: random.Random) -> bytes:
    """A header of a tar says something else, and its sum is right again."""
    changed = bytearray(content)
    headers = [at for at in range(0, len(changed), BLOCK) if changed[at + 257 : at + 262] == b"ustar"]
    at = rng.choice(headers)
    start, size = rng.choice(((0, 100), (100, 8), (124, 12), (136, 12), (156, 1), (157, 100), (257, 8), (345, 155)))
    word, kind = rng.choice(WORDS).encode()[:size], rng.choice((b"x", b"L", b"g", b"1", b"S"))
    octal = (b"7" * size, b"\x80" + b"\xff" * size)
    piece = rng.choice((rng.randbytes(size), bytes(size), word, b"./" * size, kind, *octal))
    changed[at + start : at + start + size] = piece[:size].ljust(size, b"\0")
    changed[at + 148 : at + 156] = b" " * 8
    changed[at + 148 : at + 156] = b"%06o\0 " % sum(changed[at : at + BLOCK])
    return bytes(changed)


def png_chunk(content: bytes, rng: random.Random) -> bytes:
    """A chunk of a PNG says something else, and its sum is right again."""
    chunks, at = [], 8
    while at + 12 <= len(content):
        (size,) = struct.unpack_from(">I", content, at)
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + size]))
        at += 12 + size
    place = rng.randrange(len(chunks))
    name, body = chunks[place]
    kind = rng.randrange(4)
    if kind == 0 and body:
        chunks[place] = name, flip(body, rng)
    elif kind == 1 and body:
        chunks[place] = name, number(body, rng)
    elif kind == 2:
        chunks.insert(place, rng.choice(chunks))
    else:
        bomb = zlib.compress(bytes(rng.choice((10**5, 10**7))))
        odd = ((b"zTXt", b"a\0\0" + bomb), (b"iCCP", b"a\0\0" + bomb), (b"IDAT", bomb), (b"eXIf", rng.randbytes(100)))
        chunks.insert(place, rng.choice((*odd, (b"acTL", bytes(8)), (b"PLTE", bytes(7)))))
    sealed = (struct.pack(">I", len(b)) + n + b + struct.pack(">I", zlib.crc32(n + b)) for n, b in chunks)
    return content[:8] + b"".join(sealed)


def jpeg_segment(content: bytes, rng: random.Random) -> bytes:
    """A segment of a JPEG comes many times, or with noise in it: its scans and tables have no sums."""
    marks = [at for at in range(len(content) - 3) if content[at] == 0xFF and content[at + 1] not in (0, 0xFF)]
    at = rng.choice(marks[:20] or [0])
    size = 2 + int.from_bytes(content[at + 2 : at + 4], "big")
    piece = content[at : at + size]
    piece = piece * rng.choice((2, 50, 400)) if rng.random() < 0.5 else piece[:4] + rng.randbytes(len(piece[4:]))
    return content[:at] + piece + content[at + size :]


def tensors_header(content: bytes, rng: random.Random) -> bytes:
    """A safetensors header says something else, and its length is right again."""
    (size,) = struct.unpack_from("<Q", content)
    header = json.dumps(tree(json.loads(content[8 : 8 + size]), rng)).encode()
    return struct.pack("<Q", len(header)) + header + content[8 + size :]


PNG = (*BYTES, png_chunk, png_chunk, png_chunk)
JPEG = (*BYTES, jpeg_segment, jpeg_segment)
TAR = (*BYTES, tar_header, tar_header, tar_header)
TENSORS = (*BYTES, tensors_header, tensors_header, tensors_header)
