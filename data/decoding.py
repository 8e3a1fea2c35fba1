"""From an image file's bytes to upright RGB pixels, safely: known formats only, caps on pixels and parts before any are
decoded, and every failure a BadSample. An animation is its first frame.

Two decoders give pixels of the training size. Both let a JPEG be reduced while it is decoded, by 2, 4 or 8, to no less
than `reducing_gap` times that size; tests/test_decoding.py bounds what that changes.
"""

import io
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from math import ceil

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError, features

from ldm.data.colours import rgb
from ldm.data.errors import BadSample
from ldm.data.image_bytes import bits_of_bmp, check_parts, check_scans, format_name, says_late_how_it_lies
from ldm.data.image_names import HAS_AVIF, HAS_HEIF
from ldm.data.rasters import ORIENTATION, Picture, orientation, picture, said_orientation, upright
from ldm.data.transforms import fitted, kept, resize
from ldm.data.user_error import UserError

FORMATS: tuple[str, ...] = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")
FORMATS += (*(["AVIF"] if HAS_AVIF else []), *(["HEIF"] if HAS_HEIF else []))
MAX_PIXELS = 1 << 26


def decode_image(content: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """An upright RGB image of the stored size; BadSample if broken."""
    image = open_image(content, max_pixels)
    with named_failure():
        pixels = rgb(image)
    turned = orientation(image)
    return pixels if turned == 1 else Image.fromarray(np.ascontiguousarray(upright(np.asarray(pixels), turned)))


def read_picture(content: bytes, image_size: int, max_pixels: int = MAX_PIXELS) -> Picture:
    """How an image lies and of what size it will be, from its header; BadSample if that cannot be read."""
    image = open_image(content, max_pixels)
    if image.format == "PNG" and says_late_how_it_lies(content):
        with named_failure():
            image.load()
    turned = said_orientation(image)
    stored = image.size
    if image.format == "TIFF" and image.tag_v2.get(ORIENTATION) in (5, 6, 7, 8):  # type: ignore[attr-defined]  # Pillow has exchanged them already
        stored = stored[::-1]
    return picture(stored, turned or 1, image_size)


# -- decoders ------------------------------------------------------------------------------------------------------


class Decoder(ABC):
    """Bytes of an image file -> uint8 [H, W, 3], upright, shortest side `image_size`."""

    name: str  # of data.decoder
    reducing_gap: int

    def __init__(self, max_pixels: int = MAX_PIXELS):
        self.max_pixels = max_pixels

    @abstractmethod
    def __call__(self, content: bytes, image_size: int) -> np.ndarray:
        """The pixels; BadSample if it cannot be used."""

    @property
    @abstractmethod
    def libraries(self) -> str:
        """What the last bit of the pixels depends on, with versions."""


class PilDecoder(Decoder):
    """Pillow alone, nearly exact: bit-identical on any machine with the same library versions."""

    name = "pil"
    reducing_gap = 2

    def __call__(self, content: bytes, image_size: int) -> np.ndarray:
        """See Decoder."""
        return _by_pil(_to_decode(content, self.max_pixels), image_size, self.reducing_gap)

    @property
    def libraries(self) -> str:
        """See Decoder."""
        jpeg = features.version("libjpeg_turbo") or features.version("jpg")
        return f"Pillow {version('pillow')}, libjpeg {jpeg}, libwebp {features.version('webp')}"


class FastDecoder(Decoder):
    """JPEG by simplejpeg, other formats by Pillow, resized by torch; a reduced JPEG may need no resize at all.

    A reduced JPEG differs from a full decode about as much as a bilinear resize from a bicubic one. Otherwise torch
    resizes like Pillow, but for a rounding that may depend on the processor.
    """

    name = "fast"
    reducing_gap = 1

    def __init__(self, max_pixels: int = MAX_PIXELS):
        if find_spec("simplejpeg") is None:
            raise UserError("data.decoder=fast needs simplejpeg: pip install 'ldm-trainer[fast]', or data.decoder=pil")
        super().__init__(max_pixels)

    def __call__(self, content: bytes, image_size: int) -> np.ndarray:
        """See Decoder."""
        image = _to_decode(content, self.max_pixels)
        part = kept(*image.size)
        size = fitted(part[2] - part[0], part[3] - part[1], image_size)
        reduction = _reduction(image, size, self.reducing_gap)
        pixels = _simple_jpeg(content, image, reduction)
        if pixels is None:
            with named_failure():
                pixels = np.array(rgb(_reduced(image, reduction)))
        left, top, right, bottom = part
        pixels = pixels[top // reduction : ceil(bottom / reduction), left // reduction : ceil(right / reduction)]
        scales = [target * reduction / side for target, side in zip(size, (right - left, bottom - top), strict=True)]
        return upright(_resized(pixels, size, scales), orientation(image))

    @property
    def libraries(self) -> str:
        """See Decoder."""
        return f"simplejpeg {version('simplejpeg')}, torch {version('torch')}, {PilDecoder().libraries}"


DECODERS: dict[str, type[Decoder]] = {decoder.name: decoder for decoder in (PilDecoder, FastDecoder)}


# -- parts ---------------------------------------------------------------------------------------------------------


def _by_pil(image: Image.Image, image_size: int, reducing_gap: int) -> np.ndarray:
    left, top, right, bottom = kept(*image.size)
    size = fitted(right - left, bottom - top, image_size)
    reduction = _reduction(image, size, reducing_gap)
    box = (left / reduction, top / reduction, right / reduction, bottom / reduction)
    with named_failure():
        pixels = resize(rgb(_reduced(image, reduction)), size, box)
    return upright(pixels, orientation(image))


def _to_decode(content: bytes, max_pixels: int) -> Image.Image:
    """An image whose final size is known: a TIFF is loaded first, because loading rotates it."""
    image = open_image(content, max_pixels)
    if image.format == "TIFF":
        with named_failure():
            image.load()
    return image


def _reduction(image: Image.Image, size: tuple[int, int], reducing_gap: int) -> int:
    """By how much a JPEG's sides may be reduced in decoding: 8, 4, 2 or 1."""
    if image.format != "JPEG":
        return 1
    left, top, right, bottom = kept(*image.size)
    room = min((right - left) / size[0], (bottom - top) / size[1]) / reducing_gap
    return next((factor for factor in (8, 4, 2) if factor <= room), 1)


def _reduced(image: Image.Image, reduction: int) -> Image.Image:
    """The same image, to be decoded by Pillow with its sides reduced (rounded up)."""
    if reduction > 1:
        image.draft(None, (image.width // reduction, image.height // reduction))
    return image


def _simple_jpeg(content: bytes, image: Image.Image, reduction: int) -> np.ndarray | None:
    """The pixels of a JPEG with its sides reduced (rounded up); None where simplejpeg does not take the file."""
    import simplejpeg

    if image.format != "JPEG" or image.mode not in ("RGB", "L"):
        return None
    width, height = (ceil(side / reduction) for side in image.size)
    try:
        return simplejpeg.decode_jpeg(content, min_width=width, min_height=height)
    except ValueError:  # it rejects every unusual file; Pillow then tells which of them are broken
        return None


def _resized(pixels: np.ndarray, size: tuple[int, int], scales: Sequence[float]) -> np.ndarray:
    """Antialiased bicubic resize to (width, height).

    The scales say how large a pixel becomes: the last row and column of a reduced JPEG may stand for less than others.
    """
    if (pixels.shape[1], pixels.shape[0]) == size:
        return pixels
    planes = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    found = torch.ops.aten._upsample_bicubic2d_aa(planes, [size[1], size[0]], False, scales[1], scales[0])
    return found[0].permute(1, 2, 0).numpy()


def open_image(content: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """An image of which only the header is read; BadSample if it is of no known format, or too costly to decode."""
    check_parts(content)
    with named_failure():
        try:
            image = Image.open(io.BytesIO(content), formats=_formats())
        except UnidentifiedImageError:
            raise BadSample("broken image", _unknown(content)) from None
    if image.format == "BMP" and image.mode == "1" and bits_of_bmp(content) != 1:  # Pillow reads its bytes as bits
        raise BadSample(
            "broken image", "a BMP of black and white in more than one bit, which is not read; save it as PNG"
        )
    if image.width * image.height > max_pixels:
        raise BadSample("too many pixels", f"{image.width}x{image.height}, {max_pixels} pixels allowed")
    if image.format in ("JPEG", "MPO"):
        check_scans(content, image.width * image.height)
    return image


def _formats() -> tuple[str, ...]:
    """The Pillow plugins that may be tried."""
    if HAS_HEIF:
        import pillow_heif

        pillow_heif.register_heif_opener()
    return FORMATS


def _unknown(content: bytes) -> str:
    """Why the bytes are not a readable image, in words."""
    if not content:
        return "the file is empty"
    name, start = format_name(content), ascii(content[:12])[1:]
    if name and name.upper() in FORMATS:
        return f"a {name} by its first bytes, but its header cannot be read"
    *known, last = ("WebP" if form == "WEBP" else form for form in FORMATS)
    hint = ", read where pillow-heif is installed" if name == "HEIF" else ""
    return f"not a {', '.join(known)} or {last}: begins with {start} ({name or 'unknown'}{hint})"


@contextmanager
def named_failure() -> Iterator[None]:
    """Turn whatever a decoder raises into BadSample: on hostile bytes that is nearly any exception."""
    try:
        yield
    except BadSample:
        raise
    except Image.DecompressionBombError as error:
        raise BadSample("too many pixels", str(error)) from error
    except Exception as error:
        reason = re.sub(r" object at 0x[0-9a-f]+", "", str(error))  # the same file gives the same words
        raise BadSample("broken image", f"{type(error).__name__}: {reason}") from error
