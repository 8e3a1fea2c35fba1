"""What the bytes of an image file say before a decoder sees them: what it is, and what decoding it would cost.

Pillow walks a file's parts in Python, and libjpeg goes over all pixels once for each scan: a few kilobytes can ask for
minutes. Each walk here stops at the first of: the pixels, a limit. Numbers of parts are bounded, not times.
"""

import re
import struct
from collections.abc import Iterator

from ldm.data.errors import BadSample

MAX_PARTS = 1 << 16  # of one file: segments, chunks, blocks, strips; encoders write dozens, at most thousands
MAX_JUNK_BYTES = 1 << 16  # between the parts of a file
MAX_EXIF_BYTES = 1 << 20  # a JPEG segment holds 64 kB, and few pictures have more than one
MAX_SCANNED_PIXELS = 1 << 30  # pixels times scans: 16 for the largest picture allowed; encoders write ten

# the names of formats by their first bytes, at an offset
SIGNATURES: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\xff\xd8\xff", "JPEG"), (0, b"\x89PNG\r\n\x1a\n", "PNG"), (8, b"WEBP", "WebP"), (0, b"GIF8", "GIF"),
    (0, b"II+\0", "BigTIFF"), (0, b"MM\0+", "BigTIFF"), (0, b"II*\0", "TIFF"), (0, b"MM\0*", "TIFF"),
    (4, b"ftypavi", "AVIF"), (4, b"ftyphei", "HEIF"), (4, b"ftyphev", "HEIF"), (4, b"ftypmif1", "HEIF"),
    (4, b"ftypmsf1", "HEIF"), (4, b"ftyp", "MP4 or another film"), (0, b"BM", "BMP"), (0, b"8BPS", "Photoshop"),
    (0, b"\xff\x0a", "JPEG XL"), (4, b"JXL ", "JPEG XL"), (4, b"jP  ", "JPEG 2000"),
    (0, b"%!PS", "PostScript"), (0, b"%PDF", "PDF"), (0, b"<svg", "SVG"), (0, b"<?xml", "XML (perhaps SVG)"),
    (0, b"<!DOCTYPE", "HTML"), (0, b"<html", "HTML"), (0, b"PK\x03\x04", "ZIP"), (0, b"\x1f\x8b", "gzip"),
    (0, b"\x93NUMPY", "NumPy array"), (0, b"\x76\x2f\x31\x01", "OpenEXR"), (0, b"\0\x05\x16\x07", "AppleDouble"),
    (0, b"version https://git-lfs", "Git LFS pointer"), (0, b"qoif", "QOI"), (0, b"\0\0\x01\0", "ICO"),
)  # fmt: skip
MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
BYTES_OF = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 13: 4, 16: 8}  # of a TIFF tag's value, by its type


def format_name(content: bytes) -> str | None:
    """The image format that the first bytes belong to; None if it is not a known one."""
    return next((name for offset, mark, name in SIGNATURES if content.startswith(mark, offset)), None)


def is_lossy(content: bytes) -> bool:
    """Whether it is a JPEG, or a WebP that is compressed as one is: not the pixels that were written."""
    kind = format_name(content)
    return kind == "JPEG" or (kind == "WebP" and b"VP8 " in content[12:100])


def check_parts(content: bytes) -> None:
    """Raises BadSample if the file has more parts than any encoder writes, or is of a kind that costs too much."""
    name = format_name(content)
    if name in CHECKS:
        CHECKS[name](content)


def check_scans(content: bytes, pixels: int) -> None:
    """Raises BadSample if a JPEG has too many scans for that many pixels."""
    scans = sum(1 for marker, _, _ in jpeg_segments(content) if marker == 0xDA)
    if scans * pixels > MAX_SCANNED_PIXELS:
        raise BadSample("too many scans", f"{scans} scans of {pixels} pixels, {MAX_SCANNED_PIXELS // pixels} allowed")


def jpeg_segments(content: bytes) -> Iterator[tuple[int, int, int]]:
    """(marker, first byte after the marker, end of the segment) up to the end of the image, as libjpeg walks them."""
    place = 2
    while found := MARKER.search(content, place):
        marker, start = content[found.end() - 1], found.end()
        if marker == 0xD9:
            return
        length = 0 if marker in (0x01, 0xD8) else int.from_bytes(content[start : start + 2], "big")
        place = start + length
        yield marker, start, place


def _check_jpeg(content: bytes) -> None:
    before, in_scans, junk, exif = 2, False, 0, 0
    for parts, (marker, start, end) in enumerate(jpeg_segments(content), 1):
        in_scans = in_scans or marker == 0xDA
        junk += 0 if in_scans else start - 2 - before
        exif += end - start if marker == 0xE1 and content.startswith(b"Exif", start + 2) else 0
        before = end
        if parts > MAX_PARTS or junk > MAX_JUNK_BYTES or exif > MAX_EXIF_BYTES:
            raise BadSample("broken image", f"a JPEG of {parts} segments, {junk} bytes between them, {exif} of EXIF")


def png_chunks(content: bytes) -> Iterator[tuple[bytes, int]]:
    """(name, length) of each chunk; raises BadSample if there are too many."""
    place, parts = 8, 0
    while place + 8 <= len(content):
        length, name = struct.unpack_from(">I4s", content, place)
        place += 12 + length
        parts += 1
        if parts > MAX_PARTS:
            raise BadSample("broken image", f"a PNG of more than {MAX_PARTS} chunks")
        yield name, length


def _check_png(content: bytes) -> None:
    for _ in png_chunks(content):
        pass


def says_late_how_it_lies(content: bytes) -> bool:
    """Whether a PNG has EXIF or text after its pixels, where only a full decode finds it."""
    names = [name for name, _ in png_chunks(content)]
    pixels = names.index(b"IDAT") if b"IDAT" in names else len(names)
    return not {b"eXIf", b"iTXt", b"tEXt", b"zTXt"}.isdisjoint(names[pixels:])


def _check_gif(content: bytes) -> None:
    """Extensions before the first frame."""
    place = 13 + (3 * 2 ** ((content[10] & 7) + 1) if len(content) > 10 and content[10] & 0x80 else 0)
    for _ in range(MAX_PARTS):
        if content[place : place + 1] != b"!":  # a frame, or what Pillow passes over byte by byte
            after = content.find(b",", place, place + MAX_JUNK_BYTES)
            if after >= 0 or len(content) < place + MAX_JUNK_BYTES:
                return
            break
        place += 2
        while place < len(content) and content[place]:
            place += 1 + content[place]
        place += 1
    raise BadSample("broken image", f"a GIF of more than {MAX_PARTS} blocks or bytes before its first frame")


def _check_tiff(content: bytes) -> None:
    """Strips or tiles, and the area of a tile, which is decoded at once."""
    order = "<" if content.startswith(b"II") else ">"
    values = dict(_tiff_tags(content, order))
    strips = max((count for tag, (count, _) in values.items() if tag in (273, 279, 324, 325)), default=0)
    tile = values.get(322, (1, 1))[1] * values.get(323, (1, 1))[1]
    if strips > MAX_PARTS or tile > 1 << 26:
        raise BadSample("broken image", f"a TIFF of {strips} strips or tiles, {tile} pixels in each")


def _tiff_tags(content: bytes, order: str) -> Iterator[tuple[int, tuple[int, int]]]:
    """(tag, (count, value if it is one whole number)) of the first directory."""
    if len(content) < 8:
        return
    (place,) = struct.unpack_from(f"{order}I", content, 4)
    if place + 2 > len(content):
        return
    (entries,) = struct.unpack_from(f"{order}H", content, place)
    for start in range(place + 2, min(place + 2 + 12 * entries, len(content) - 11), 12):
        tag, kind, count = struct.unpack_from(f"{order}HHI", content, start)
        width = BYTES_OF.get(kind, 0)
        value = int.from_bytes(content[start + 8 : start + 8 + width], "little" if order == "<" else "big")
        yield tag, (count, value if count == 1 and width <= 4 else 0)


def _check_bmp(content: bytes) -> None:
    """Refuses run-length compression, which Pillow decodes in Python, one pixel at a time."""
    if content[30:31] in (b"\x01", b"\x02"):
        raise BadSample(
            "broken image", "a BMP with run-length compression, which is not read; save it without, or as PNG"
        )


def bits_of_bmp(content: bytes) -> int:
    """Bits per pixel; the oldest headers store them elsewhere."""
    start = 24 if content[14:18] == b"\x0c\0\0\0" else 28
    return int.from_bytes(content[start : start + 2], "little")


def _refuse_big_tiff(content: bytes) -> None:
    raise BadSample("broken image", "a BigTIFF, which is for files over 4 GB and not read; save it as TIFF or PNG")


CHECKS = {
    "JPEG": _check_jpeg,
    "PNG": _check_png,
    "GIF": _check_gif,
    "TIFF": _check_tiff,
    "BigTIFF": _refuse_big_tiff,
    "BMP": _check_bmp,
}
