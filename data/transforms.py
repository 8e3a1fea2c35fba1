"""From an image file's bytes to pixels of the training size: safe decoding, resizing, crop and flip.

Pure functions on bytes and uint8 arrays [H, W, C]; only `to_tensor` makes tensors. No colour augmentation.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageOps

from data.draws import uniform
from data.errors import BadSample

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
FORMATS = ("JPEG", "PNG", "WEBP")
MAX_PIXELS = 1 << 26
DEEP_MODES = ("I", "I;16", "I;16B", "I;16L")


def decode_image(content: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """An upright RGB image, transparency put on white, the first frame of an animation; BadSample if broken."""
    image = _open(content, max_pixels)
    with _named_failure():
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        if image.mode in DEEP_MODES:
            return _eight_bits(image).convert("RGB")
        if image.has_transparency_data:
            image = image.convert("RGBA")
            white = Image.new("RGB", image.size, "white")
            white.paste(image, mask=image)
            return white
        return image.convert("RGB")


def decode_mask(content: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """A one-channel 8-bit image, as it is stored."""
    image = _open(content, max_pixels)
    with _named_failure():
        image.load()
        return _eight_bits(image) if image.mode in DEEP_MODES else image.convert("L")


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


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey to 8-bit by scale; PIL's own conversion would clip."""
    grey = np.asarray(image, dtype=np.float64)
    return Image.fromarray(np.clip(grey / 257, 0, 255).round().astype(np.uint8))


def fitted(width: int, height: int, image_size: int) -> tuple[int, int]:
    """(width, height) with the shortest side scaled to `image_size`."""
    short = min(width, height)
    return round(width * image_size / short), round(height * image_size / short)


def resize(image: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """Antialiased bicubic resize of an RGB image to (width, height); uint8 [H, W, 3]."""
    if image.size != size:
        image = image.resize(size, Image.Resampling.BICUBIC)
    return np.asarray(image)


def resize_nearest(image: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """Resize without mixing values, for masks; uint8 [H, W]."""
    return np.asarray(image.resize(size, Image.Resampling.NEAREST))


@dataclass(frozen=True)
class View:
    """What a batch shows of a resized sample: a square window, its mirror image or not, one of several choices.

    `top`, `left` and `choice` are in [0, 1): shares of the room there is, so that one draw serves every size.
    """

    top: float = 0.5
    left: float = 0.5
    flip: bool = False
    choice: float = 0.0

    def crop(self, array: np.ndarray, image_size: int) -> np.ndarray:
        """The window [image_size, image_size, ...] of an array [H, W, ...]."""
        left, top = self.corner(*array.shape[:2], image_size)
        window = array[top : top + image_size, left : left + image_size]
        return window[:, ::-1] if self.flip else window

    def corner(self, height: int, width: int, image_size: int) -> tuple[int, int]:
        """(left, top) of the window in an array of that height and width."""
        return int(self.left * (width - image_size + 1)), int(self.top * (height - image_size + 1))

    def choose(self, count: int) -> int:
        """One of `count` alternatives."""
        return int(self.choice * count)


@dataclass(frozen=True)
class Augmentation:
    """How views are drawn; each draw is addressed by (seed, purpose, sample number)."""

    seed: int
    horizontal_flip_prob: float
    random_crop: bool

    def views(self, numbers: np.ndarray) -> list[View]:
        """One view for each sample number, int64 [n]."""
        flips = np.zeros(len(numbers), dtype=bool)
        if self.horizontal_flip_prob > 0:
            flips = uniform(self.seed, "flip", numbers)[:, 0] < self.horizontal_flip_prob
        choices = uniform(self.seed, "choice", numbers)[:, 0]
        corners = uniform(self.seed, "crop", numbers, 2) if self.random_crop else np.full((len(numbers), 2), 0.5)
        rows = zip(corners.tolist(), flips.tolist(), choices.tolist(), strict=True)
        return [View(top, left, flip, choice) for (top, left), flip, choice in rows]


def to_tensor(images: list[np.ndarray]) -> torch.Tensor:
    """uint8 images [H, W, 3] -> float32 [B, 3, H, W] in [-1, 1]."""
    stacked = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    return stacked.to(torch.float32, memory_format=torch.contiguous_format).div_(127.5).sub_(1)
