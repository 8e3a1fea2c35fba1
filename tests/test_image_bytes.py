"""What an image would cost is told by its bytes, before anything of it is decoded: parts are counted, not seconds."""

import io
import struct
import sys
import tracemalloc
import zlib
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from ldm.data import decoding, image_bytes
from ldm.data.colours import rgb
from ldm.data.decoding import decode_image, open_image
from ldm.data.errors import BadSample
from ldm.data.image_bytes import MAX_PARTS, MAX_SCANNED_PIXELS, format_name, jpeg_segments


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(name: bytes, body: bytes = b"") -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


SMALL = Image.new("RGB", (8, 8), "red")
JPEG, PNG, GIF = encoded(SMALL, "JPEG"), encoded(SMALL, "PNG"), encoded(SMALL, "GIF")


def progressive(side: int, more: int) -> bytes:
    content = encoded(Image.new("RGB", (side, side)), "JPEG", progressive=True)
    return content[:-2] + content[content.rindex(b"\xff\xda") : -2] * more + b"\xff\xd9"


def scans(content: bytes) -> int:
    return sum(marker == 0xDA for marker, _, _ in jpeg_segments(content))


def test_scans_are_counted_to_the_end_of_the_picture_and_no_further() -> None:
    assert scans(JPEG) == 1 and scans(progressive(32, 0)) == 10 and scans(progressive(32, 25)) == 35
    film = np.random.default_rng(0).bytes(1 << 20) + b"\xff\xda" * 500  # behind a phone's picture lies its film
    assert scans(progressive(32, 0) + film) == 10
    thumbnail = encoded(SMALL, "JPEG", exif=b"Exif\0\0" + progressive(16, 0))
    assert scans(thumbnail) == 1


def test_a_picture_that_would_be_gone_over_a_thousand_times_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = MAX_SCANNED_PIXELS // 2048**2
    decode_image(progressive(2048, 0))
    hostile = progressive(2048, allowed + 10)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(BadSample, match=f"{allowed + 20} scans") as caught:
        open_image(hostile)
    assert caught.value.kind == "too many scans"


def tiff(*entries: tuple[int, int, int, int]) -> bytes:
    """A directory of (tag, type, count, value)."""
    body = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + body + bytes(4)


MANY = MAX_PARTS + 1
TOO_MANY = {
    "jpeg segments": JPEG[:2] + b"\xff\xfe\0\2" * MANY + JPEG[2:],
    "jpeg junk": JPEG[:20] + b"\0" * MANY + JPEG[20:],
    "jpeg fill": JPEG[:2] + b"\xff" * MANY + JPEG[2:],
    "jpeg exif": JPEG[:2] + (b"\xff\xe1\xff\xffExif\0\0" + bytes(65527)) * 17 + JPEG[2:],
    "png chunks": PNG[:33] + chunk(b"teSt") * MANY + PNG[33:],
    "png pixels": PNG[:33] + chunk(b"IDAT") * MANY + PNG[33:],
    "gif blocks": GIF[: GIF.index(b",")] + b"!\xff\0" * MANY + GIF[GIF.index(b",") :],
    "gif junk": GIF[: GIF.index(b",")] + b"\1" * MANY + GIF[GIF.index(b",") :],
    "tiff strips": tiff((256, 4, 1, 1), (257, 4, 1, MANY), (273, 4, MANY, 8)),
    "tiff tile": tiff((256, 4, 1, 1), (257, 4, 1, 1), (322, 4, 1, 1 << 16), (323, 4, 1, 1 << 16)),
    "big tiff": b"II+\0" + bytes(60),
    "runs in bmp": (bmp := encoded(SMALL, "BMP"))[:30] + b"\1" + bmp[31:],
}


@pytest.mark.parametrize("name", TOO_MANY)
def test_more_parts_than_an_encoder_writes_are_refused_before_pillow_walks_them(name: str, monkeypatch) -> None:
    monkeypatch.setattr(Image, "open", lambda *args, **options: pytest.fail("opened"))
    with pytest.raises(BadSample) as caught:
        open_image(TOO_MANY[name])
    assert caught.value.kind == "broken image" and len(str(caught.value)) < 200


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "TIFF", "BMP", "WEBP", "AVIF"])
def test_what_an_encoder_writes_is_not_refused(kind: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (1000, 1000, 3), dtype=np.uint8))
    image_bytes.check_parts(encoded(noise, kind))
    assert decode_image(encoded(noise, kind)).size == (1000, 1000)


def test_deep_and_transparent_pixels_cost_little_more_than_themselves() -> None:
    deep = Image.fromarray(np.random.default_rng(0).integers(0, 65535, (4096, 2048), dtype=np.uint16))
    exact = np.round(np.asarray(deep) / 257)
    tracemalloc.start()
    found = rgb(deep)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (np.asarray(found)[..., 0] == exact).all()
    assert peak <= 3 * deep.width * deep.height  # a byte for each pixel, and strips


# -- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (encoded(SMALL, "PPM"), r"begins with 'P6\\n8 8"),
        (b"%PDF-1.7 ...", "PDF"),
        (b"\0\0\0\x18ftypheic" + bytes(20), "HEIF, read where pillow-heif is installed"),
        (b"version https://git-lfs.github.com/spec/v1", "Git LFS pointer"),
        (b"<!DOCTYPE html><title>404</title>", "HTML"),
        (b"", "empty"),
        (b"\x1b[2Jhello", r"begins with '\\x1b\[2Jhello' \(unknown\)"),
        (PNG[:12], "a PNG by its first bytes"),
    ],
)
def test_what_is_no_picture_is_named_by_its_first_bytes(content: bytes, said: str) -> None:
    with pytest.raises(BadSample, match=said) as caught:
        decode_image(content)
    assert " at 0x" not in str(caught.value) and str(caught.value).isprintable()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "TIFF", "BMP", "WEBP", "AVIF"])
def test_known_formats_have_names(kind: str) -> None:
    assert format_name(encoded(SMALL, kind)).upper() == kind


def test_heic_is_read_by_its_plugin_where_that_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    plugin, called = ModuleType("pillow_heif"), []
    plugin.register_heif_opener = lambda: called.append("registered")
    monkeypatch.setitem(sys.modules, "pillow_heif", plugin)
    monkeypatch.setattr(decoding, "HAS_HEIF", True)
    assert decode_image(PNG).size == (8, 8) and called == ["registered"]


def bmp(bits: int, colours: list[tuple[int, int, int]], row: bytes) -> bytes:
    """A BMP of one row."""
    palette = b"".join(bytes([*colour[::-1], 0]) for colour in colours)
    start = 54 + len(palette)
    head = struct.pack("<IiiHHIIiiII", 40, 8, 1, 1, bits, 0, len(row), 0, 0, len(colours), 0)
    return b"BM" + struct.pack("<IHHI", start + len(row), 0, 0, start) + head + palette + row


@pytest.mark.parametrize(("bits", "row"), [(8, bytes([0, 1] * 4)), (4, bytes([1] * 4))])
def test_a_bmp_of_two_colours_in_many_bits_is_not_read_as_bits(bits: int, row: bytes) -> None:
    with pytest.raises(BadSample, match="a BMP of black and white in more than one bit"):
        decode_image(bmp(bits, [(0, 0, 0), (255, 255, 255)], row))
    assert np.asarray(decode_image(bmp(bits, [(0, 0, 0), (255, 0, 0)], row)))[0, :, 0].tolist() == [0, 255] * 4
    assert (
        np.asarray(decode_image(bmp(1, [(0, 0, 0), (255, 255, 255)], b"\x55\0\0\0")))[0, :, 0].tolist() == [0, 255] * 4
    )
