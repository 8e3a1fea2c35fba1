"""From an image file's bytes to upright RGB pixels, safely: known formats only, a cap on pixels before anything is
decoded, and every failure a BadSample. Transparency lies on white; 16 bits are scaled; an animation is its first frame.

Two decoders give pixels of the training size. Both let a JPEG be reduced while it is decoded, by 2, 4 or 8, to no less
than `reducing_gap` times that size; tests/test_decoding.py bounds what that changes.
"""

import io
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from math import ceil

import numpy as np
import torch
from PIL import ExifTags, Image, features

from data.errors import BadSample
from data.transforms import fitted, resize

HAS_AVIF, HAS_HEIF = (find_spec(name) is not None for name in ("PIL.AvifImagePlugin", "pillow_heif"))
# an allow-list of what is worth its risk; where a sample has several images the first in this order is its image, so
# that a new format never displaces an old one
IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "jfif", "jpe", "tif", "tiff", "bmp", "gif")
IMAGE_EXTENSIONS += (*(["avif"] if HAS_AVIF else []), *(["heic", "heif"] if HAS_HEIF else []))
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")
FORMATS += (*(["AVIF"] if HAS_AVIF else []), *(["HEIF"] if HAS_HEIF else []))
MAX_PIXELS = 1 << 26
DEEP_MODES = ("I", "I;16", "I;16B", "I;16L")


def decode_image(content: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """An upright RGB image of the stored size; BadSample if broken."""
    image = _open(content, max_pixels)
    with _named_failure():
        pixels = _rgb(image)
    turned = orientation(image)
    return pixels if turned == 1 else Image.fromarray(np.ascontiguousarray(upright(np.asarray(pixels), turned)))


def decode_mask(content: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """A one-channel 8-bit image, as it is stored."""
    image = _open(content, max_pixels)
    with _named_failure():
        image.load()
        return _eight_bits(image) if image.mode in DEEP_MODES else image.convert("L")


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
    """Pillow alone, and next to nothing lost: the same bits on any machine with the same versions."""

    name = "pil"
    reducing_gap = 2

    def __call__(self, content: bytes, image_size: int) -> np.ndarray:
        """See Decoder."""
        return _by_pil(_open(content, self.max_pixels), image_size, self.reducing_gap)

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
            raise ValueError("data.decoder=fast needs simplejpeg: pip install 'ldm[fast]', or data.decoder=pil")
        super().__init__(max_pixels)

    def __call__(self, content: bytes, image_size: int) -> np.ndarray:
        """See Decoder."""
        image = _open(content, self.max_pixels)
        size = fitted(*image.size, image_size)
        reduction = _reduction(image, size, self.reducing_gap)
        pixels = _simple_jpeg(content, image, reduction)
        if pixels is None:
            with _named_failure():
                pixels = np.array(_rgb(_reduced(image, reduction)))
        scales = [target * reduction / side for target, side in zip(size, image.size, strict=True)]
        return upright(_resized(pixels, size, scales), orientation(image))

    @property
    def libraries(self) -> str:
        """See Decoder."""
        return f"simplejpeg {version('simplejpeg')}, torch {version('torch')}, {PilDecoder().libraries}"


DECODERS: dict[str, type[Decoder]] = {decoder.name: decoder for decoder in (PilDecoder, FastDecoder)}


# -- parts ---------------------------------------------------------------------------------------------------------


def _by_pil(image: Image.Image, image_size: int, reducing_gap: int) -> np.ndarray:
    size = fitted(*image.size, image_size)
    reduction = _reduction(image, size, reducing_gap)
    box = (0.0, 0.0, image.width / reduction, image.height / reduction)
    with _named_failure():
        pixels = resize(_rgb(_reduced(image, reduction)), size, box)
    return upright(pixels, orientation(image))


def _reduction(image: Image.Image, size: tuple[int, int], reducing_gap: int) -> int:
    """By how much a JPEG's sides may be reduced in decoding: 8, 4, 2 or 1."""
    if image.format != "JPEG":
        return 1
    room = min(side / target for side, target in zip(image.size, size, strict=True)) / reducing_gap
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
    except ValueError:  # it takes no file with anything odd in it; Pillow tells the odd from the broken
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


def _open(content: bytes, max_pixels: int) -> Image.Image:
    with _named_failure():
        image = Image.open(io.BytesIO(content), formats=FORMATS)  # reads the header only
    if image.width * image.height > max_pixels:
        raise BadSample("too many pixels", f"{image.width}x{image.height}, {max_pixels} pixels allowed")
    return image


@contextmanager
def _named_failure() -> Iterator[None]:
    """Turn whatever a decoder raises into BadSample: on hostile bytes that is nearly any exception."""
    try:
        yield
    except Image.DecompressionBombError as error:
        raise BadSample("too many pixels", str(error)) from error
    except Exception as error:
        raise BadSample("broken image", f"{type(error).__name__}: {error}") from error


def _rgb(image: Image.Image) -> Image.Image:
    """Decode, as it lies in the file."""
    image.load()
    if image.mode in DEEP_MODES:
        return _eight_bits(image).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image)
        return white
    return image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey to 8-bit by scale; PIL's own conversion would clip."""
    grey = np.asarray(image, dtype=np.float64)
    return Image.fromarray(np.clip(grey / 257, 0, 255).round().astype(np.uint8))


def orientation(image: Image.Image) -> int:
    """How the camera was held, 1 to 8 as EXIF numbers it; 1, upright, where that is not said or cannot be read."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # broken metadata is no reason to lose a good picture, and its reader raises nearly anything
        return 1
    return value if value in range(1, 9) else 1


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """[H, W, C] as the camera stored it -> as the scene was."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels[:, ::-1] if orientation in (2, 3, 6, 7) else pixels
