"""Pictures that say their own number, so that a caption at the wrong picture shows; and ways to spoil a sample."""

import hashlib
import io
import json
import random
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image

CELLS = 4  # a side: 16 bits
CELL_PIXELS = 12
SIZE = CELLS * CELL_PIXELS

Sample = dict[str, Any]


def pixels(number: int) -> np.ndarray:
    """uint8 [48, 48], a bit of `number` in each cell, bright for one."""
    bits = [(number >> place) & 1 for place in range(CELLS**2)]
    return (
        np.kron(np.array(bits).reshape(CELLS, CELLS), np.ones((CELL_PIXELS, CELL_PIXELS))).astype(np.uint8) * 200 + 20
    )


def number_in(image: np.ndarray) -> int:
    """The number that an image [3, SIZE, SIZE] in [-1, 1] shows."""
    cells = image.mean(0).reshape(CELLS, CELL_PIXELS, CELLS, CELL_PIXELS).mean((1, 3)).ravel()
    return sum(1 << place for place, value in enumerate(cells) if value > 0)


def caption_of(number: int) -> str:
    """A caption that only this picture has."""
    return hashlib.sha256(str(number).encode()).hexdigest()


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """The file of an image."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def sample(number: int, kind: str = "jpg") -> Sample:
    """A good sample; `kind` is jpg, png or webp."""
    image = Image.fromarray(pixels(number)).convert("RGB")
    content = encoded(image, {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}[kind], quality=95)
    return {"__key__": f"k{number:05d}", kind: content, "json": json.dumps({"caption": caption_of(number)}).encode()}


def replaced(sample: Sample, kind: str, content: bytes) -> Sample:
    """The sample with another image member."""
    rest = {name: value for name, value in sample.items() if name not in ("jpg", "png", "webp")}
    return {**rest, kind: content}


# -- spoilers: (sample, number, rng) -> sample -----------------------------------------------------------------------


def truncated_image(spoilt: Sample, number: int, rng: random.Random) -> Sample:
    """A third to two thirds of the file is there."""
    kind = next(name for name in ("jpg", "png", "webp") if name in spoilt)
    content = spoilt[kind]
    return {**spoilt, kind: content[: rng.randrange(len(content) // 3, 2 * len(content) // 3)]}


def cmyk(spoilt: Sample, number: int, rng: random.Random) -> Sample:
    """For printing."""
    image = Image.fromarray(pixels(number)).convert("RGB").convert("CMYK")
    return replaced(spoilt, "jpg", encoded(image, "JPEG", quality=95))


def sixteen_bit(spoilt: Sample, number: int, rng: random.Random) -> Sample:
    """Grey of 16 bits."""
    return replaced(spoilt, "png", encoded(Image.fromarray(pixels(number).astype(np.uint16) * 257)))


def palette(spoilt: Sample, number: int, rng: random.Random) -> Sample:
    """Colours by number, sometimes one of them transparent."""
    image = Image.fromarray(pixels(number)).convert("P")
    options = {"transparency": 255} if rng.random() < 0.5 else {}  # a colour that does not occur
    return replaced(spoilt, "png", encoded(image, **options))


def animation(spoilt: Sample, number: int, rng: random.Random) -> Sample:
    """The second frame shows another number."""
    frames = [Image.fromarray(pixels(n)).convert("RGB") for n in (number, number ^ 0xFFFF)]
    kind = rng.choice(["webp", "png"])
    content = encoded(
        frames[0], "WEBP" if kind == "webp" else "PNG", save_all=True, append_images=frames[1:], lossless=True
    )
    return replaced(spoilt, kind, content)


def rotated(spoilt: Sample, number: int, rng: random.Random) -> Sample:
    """Stored as the camera was held, with EXIF saying how."""
    orientation = rng.randrange(2, 9)
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]  # of Image.Transpose
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(pixels(number)).convert("RGB").transpose(Image.Transpose(undo))
    return replaced(spoilt, "jpg", encoded(stored, "JPEG", quality=95, exif=exif))


def bomb(spoilt: Sample, number: int, rng: random.Random) -> Sample:
    """A few bytes that claim up to 3.6 thousand million pixels."""
    side = rng.choice([9_000, 20_000, 60_000])
    return replaced(spoilt, "png", png_header(side, side))


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and has hardly anything inside."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def bad_caption(spoilt: Sample, number: int, rng: random.Random) -> Sample:
    """Empty, not UTF-8, half a surrogate pair, or no text."""
    contents = [b'{"caption": "  "}', b'{"caption": "\xff\xfe"}', b'{"caption": "\\ud800"}', b'{"caption": 7}', b"{cut"]
    return {**spoilt, "json": rng.choice(contents)}


def long_caption(spoilt: Sample, number: int, rng: random.Random) -> Sample:
    """100,000 characters that begin with the right ones."""
    return {**spoilt, "json": json.dumps({"caption": caption_of(number) + " x" * 50_000}).encode()}


def missing_member(spoilt: Sample, number: int, rng: random.Random) -> Sample:
    """No image, or no text."""
    gone = rng.choice(["json", next(name for name in ("jpg", "png", "webp") if name in spoilt)])
    return {name: value for name, value in spoilt.items() if name != gone}


def path_trick(spoilt: Sample, number: int, rng: random.Random) -> Sample:
    """A name that would lie elsewhere if it were a path."""
    places = ["../../etc/", "/root/", "~/", "C:\\", "./././", "a/../../", "\x1b[2J/", "nul\n/"]
    return {**spoilt, "__key__": rng.choice(places) + spoilt["__key__"]}
