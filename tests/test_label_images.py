"""Pixels that are numbers arrive as they are stored, and masks mark what they mark; what is unclear is refused."""

import io
import struct
import zlib
from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image

from ldm.data.errors import BadSample
from ldm.data.label_images import decode_labels, decode_mask

NUMBERS = np.arange(48).reshape(6, 8) % 4
MARKED = np.zeros((6, 8), bool)
MARKED[:3, :4] = True


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(values: np.ndarray, depth: int, colour: int = 0, transparent: Sequence[int] = ()) -> bytes:
    """A PNG of the depths and colour types that Pillow does not write; values [H, W] or [H, W, C]."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    rows = values.reshape(len(values), -1)
    if depth == 16:
        lines = [row.astype(">u2").tobytes() for row in rows]
    else:
        bits = np.unpackbits(rows.astype(np.uint8)[..., None], axis=-1)[..., -depth:]
        lines = [np.packbits(row.reshape(-1)).tobytes() for row in bits]
    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], depth, colour, 0, 0, 0)
    palette = chunk(b"PLTE", bytes(range(48))) if colour == 3 else b""
    cut = chunk(b"tRNS", struct.pack(f">{len(transparent)}H", *transparent)) if transparent else b""
    body = zlib.compress(b"".join(b"\0" + line for line in lines))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + palette + cut + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def with_palette(numbers: np.ndarray, *colours: tuple[int, int, int]) -> Image.Image:
    image = Image.fromarray(numbers.astype(np.uint8)).convert("P")
    image.putdata(numbers.reshape(-1).tolist())
    image.putpalette([value for colour in colours for value in colour])
    return image


# -- maps of classes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("depth", "colour"), [(1, 0), (2, 0), (4, 0), (8, 0), (16, 0), (1, 3), (2, 3), (4, 3), (8, 3)])
def test_numbers_of_every_depth_are_those_stored(depth: int, colour: int) -> None:
    numbers = NUMBERS * (75 if depth == 16 else 5 if depth > 2 else 1) % (1 << depth)
    found = decode_labels(png(numbers, depth, colour)).values
    assert (found == numbers).all() and found.dtype == (np.int32 if depth == 16 else np.uint8)


def test_a_class_beyond_255_is_kept_in_tiff_and_png() -> None:
    numbers = (NUMBERS * 100).astype(np.uint16)
    assert numbers.max() == 300
    for kind in ("PNG", "TIFF"):
        assert (decode_labels(encoded(Image.fromarray(numbers), kind)).values == numbers).all()
    assert (decode_labels(encoded(Image.fromarray(numbers.astype(np.int32)), "TIFF")).values == numbers).all()


@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF", "TIFF"])
def test_a_palette_gives_its_places_and_not_its_colours(kind: str) -> None:
    image = with_palette(NUMBERS, (9, 0, 0), (200, 200, 200), (0, 80, 0), (255, 255, 255))
    assert (decode_labels(encoded(image, kind)).values == NUMBERS).all()


def test_colour_that_is_grey_all_over_and_opaque_is_taken_and_no_other() -> None:
    grey = np.repeat(NUMBERS[..., None], 3, -1).astype(np.uint8)
    assert (decode_labels(encoded(Image.fromarray(grey))).values == NUMBERS).all()
    lossless = encoded(Image.fromarray(grey), "WEBP", lossless=True)
    assert (decode_labels(lossless).values == NUMBERS).all()
    opaque = np.concatenate([grey, np.full((6, 8, 1), 255, np.uint8)], -1)
    assert (decode_labels(encoded(Image.fromarray(opaque))).values == NUMBERS).all()


def test_signed_numbers_are_taken_where_none_is_negative() -> None:
    for values in (NUMBERS, NUMBERS - 1):
        content = encoded(Image.fromarray(values.astype(np.int8).view(np.uint8)), "TIFF", tiffinfo={339: 2})
        if values.min() < 0:
            with pytest.raises(BadSample, match="signed numbers, some of which are negative"):
                decode_labels(content)
            with pytest.raises(BadSample, match="signed numbers, some of which are negative"):
                decode_mask(content)
        else:
            assert (decode_labels(content).values == values).all()


COLOUR = np.stack([NUMBERS, NUMBERS * 2, NUMBERS], -1).astype(np.uint8)
REFUSED_MAPS = {
    "RGB": encoded(Image.fromarray(COLOUR)),
    "RGBA": encoded(Image.fromarray(np.concatenate([COLOUR, COLOUR[..., :1]], -1))),
    "LA": encoded(Image.fromarray(np.stack([NUMBERS, NUMBERS], -1).astype(np.uint8), "LA")),
    "RGB with 16 bits": png(np.repeat(NUMBERS[..., None], 3, -1), 16, 2),
    "RGBA with 16 bits": png(np.stack([NUMBERS, NUMBERS * 0 + 65535], -1), 16, 4),
    "CMYK": encoded(Image.fromarray(COLOUR).convert("CMYK"), "TIFF"),
    "F": encoded(Image.fromarray(NUMBERS.astype(np.float32)), "TIFF"),
    "JPEG": encoded(Image.fromarray(NUMBERS.astype(np.uint8)), "JPEG"),
    "WEBP": encoded(Image.fromarray(COLOUR), "WEBP"),
    "white is zero": encoded(Image.fromarray(NUMBERS.astype(np.uint8)), "TIFF", tiffinfo={262: 0}),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED_MAPS)
def test_what_would_have_to_be_converted_is_refused_by_mode(name: str) -> None:
    with pytest.raises(BadSample, match=name) as caught:
        decode_labels(REFUSED_MAPS[name])
    assert caught.value.kind == "unusable map"


# -- masks ---------------------------------------------------------------------------------------------------------

LIT = np.where(MARKED, 255, 0).astype(np.uint8)
RED = np.stack([LIT, LIT * 0, LIT * 0], -1)
BLACK, WHITE, PURPLE, YELLOW = (0, 0, 0), (255, 255, 255), (68, 1, 84), (253, 231, 37)
MASKS = {
    "0 and 255": encoded(Image.fromarray(LIT)),
    "0 and 1": encoded(Image.fromarray(MARKED.astype(np.uint8))),
    "bool": encoded(Image.fromarray(MARKED)),
    "bool tiff": encoded(Image.fromarray(MARKED), "TIFF"),
    "jpeg": encoded(Image.fromarray(np.kron(LIT, np.ones((8, 8), np.uint8))), "JPEG"),
    "two bits": png(MARKED * 3, 2),
    "two bits of 0 and 1": png(MARKED * 1, 2),
    "16 bits": png(MARKED * 65535, 16),
    "16 bits of 0 and 1": png(MARKED * 1, 16),
    "16 bits of 0 and 255": png(MARKED * 255, 16),
    "rgb": encoded(Image.fromarray(np.repeat(LIT[..., None], 3, -1))),
    "red brush": encoded(Image.fromarray(RED)),
    "palette": encoded(with_palette(MARKED * 1, BLACK, (128, 0, 0))),
    "palette, black and white": encoded(with_palette(1 - MARKED, WHITE, BLACK)),
    "palette of a colour map": encoded(with_palette(MARKED * 1, PURPLE, YELLOW)),
    "alpha of white": encoded(Image.fromarray(np.stack([LIT * 0 + 255] * 3 + [LIT], -1))),
    "alpha of black": encoded(Image.fromarray(np.stack([LIT * 0, LIT], -1), "LA")),
    "alpha of a picture": encoded(Image.fromarray(np.concatenate([COLOUR * 60, LIT[..., None]], -1))),
    "alpha and colour": encoded(Image.fromarray(np.stack([LIT, LIT], -1), "LA")),
    "opaque": encoded(Image.fromarray(np.stack([LIT, LIT * 0 + 255], -1), "LA")),
}  # fmt: skip


@pytest.mark.parametrize("name", MASKS)
def test_a_mask_marks_the_same_however_it_is_written(name: str) -> None:
    found = decode_mask(MASKS[name]).values
    scale = len(found) // len(MARKED)
    assert (found == np.kron(MARKED, np.ones((scale, scale), bool))).all() and found.dtype == np.uint8


def test_grey_edges_are_cut_in_the_middle() -> None:
    edges = np.array([[0, 17, 127, 128, 238, 255]], np.uint8)
    assert decode_mask(encoded(Image.fromarray(edges))).values.tolist() == [[0, 0, 0, 1, 1, 1]]


@pytest.mark.parametrize(("value", "marked"), [(0, 0), (1, 1), (255, 1)])
def test_a_mask_may_be_all_of_one_kind(value: int, marked: int) -> None:
    assert (decode_mask(encoded(Image.new("L", (4, 4), value))).values == marked).all()


REFUSED_MASKS = {
    "numbers of classes": encoded(Image.fromarray((NUMBERS).astype(np.uint8))),
    "classes and 255 for none": encoded(Image.fromarray(np.where(NUMBERS == 3, 255, NUMBERS).astype(np.uint8))),
    "grey without white": encoded(Image.fromarray(LIT // 4)),
    "16 bits, dark": png(MARKED * 3000, 16),
    "two bits, three numbers": png(NUMBERS % 3, 2),
    "several colours": encoded(Image.fromarray(COLOUR * 60)),
    "palette of several classes": encoded(with_palette(NUMBERS, BLACK, (9, 0, 0), (0, 9, 0), (0, 0, 9))),
    "palette with a colour for 0": encoded(with_palette(1 - MARKED, (255, 0, 0), BLACK)),
    "alpha against colour": encoded(Image.fromarray(np.stack([LIT, 255 - LIT], -1), "LA")),
    "nothing opaque": encoded(Image.fromarray(np.stack([LIT, LIT * 0], -1), "LA")),
    "CMYK": encoded(Image.fromarray(RED).convert("CMYK"), "JPEG"),
    "float": encoded(Image.fromarray(MARKED.astype(np.float32)), "TIFF"),
    "16 bits with a transparent grey": png(MARKED * 65535, 16, transparent=[0]),
    "16 bits a channel": png(np.repeat(MARKED[..., None] * 255, 3, -1), 16, 2),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED_MASKS)
def test_a_mask_that_could_mean_two_things_is_refused(name: str) -> None:
    with pytest.raises(BadSample) as caught:
        decode_mask(REFUSED_MASKS[name])
    assert caught.value.kind == "unusable mask"


# -- turned ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("orientation", [None, 1, 3, 6])
def test_what_a_label_image_says_of_its_own_orientation_is_told(kind: str, orientation: int | None) -> None:
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    values, said = decode_labels(encoded(Image.fromarray(NUMBERS.astype(np.uint8)), kind, exif=exif))
    if kind == "PNG":
        assert said == orientation and (values == NUMBERS).all()
    elif orientation in (3, 6):  # Pillow turns it
        assert said == 1 and (values == np.rot90(NUMBERS, 2 if orientation == 3 else -1)).all()
    else:  # every TIFF says 1, whether anybody thought of it or not
        assert said in (None, 1) and (values == NUMBERS).all()
