"""Cutting, resizing, crop and flip: pixels of any size become pixels of the training size.

Pure functions on uint8 arrays [H, W, C]; only `to_tensor` makes tensors. No colour augmentation, no decoding.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from ldm.data.counter_random import uniform

MAX_ASPECT = 16
Box = tuple[float, float, float, float]  # left, top, right, bottom


def kept(width: int, height: int) -> tuple[int, int, int, int]:
    """left, top, right, bottom of the part that is used: all, or the middle of what is over MAX_ASPECT times as long.

    A batch shows squares of the shorter side. A line of one pixel, enlarged to them, would fill memory with its length.
    """
    long, short = max(width, height), min(width, height)
    margin = max(0, -(-(long - MAX_ASPECT * short) // 2))  # the same at both ends, so that it turns with the picture
    return (margin, 0, width - margin, height) if width > height else (0, margin, width, height - margin)


def fitted(width: int, height: int, image_size: int) -> tuple[int, int]:
    """(width, height) with the shortest side scaled to `image_size`."""
    short = min(width, height)
    return round(width * image_size / short), round(height * image_size / short)


def resize(image: Image.Image, size: tuple[int, int], box: Box | None = None) -> np.ndarray:
    """Antialiased bicubic resize of an RGB image, or of its part `box`, to (width, height); uint8 [H, W, 3]."""
    if image.size != size or (box is not None and tuple(box) != (0, 0, *size)):
        image = image.resize(size, Image.Resampling.BICUBIC, box=box)
    return np.asarray(image)


def resize_nearest(values: np.ndarray, size: tuple[int, int], box: Box | None = None) -> np.ndarray:
    """Resize uint8 or int32 [H, W], or the part `box`, to (width, height) without mixing values, for masks and maps."""
    return np.asarray(Image.fromarray(values).resize(size, Image.Resampling.NEAREST, box=box))


@dataclass(frozen=True)
class View:
    """What a batch shows of a resized sample: a square window, its mirror image or not, one of several choices.

    `top`, `left` and `choice` are in [0, 1): shares of the room there is, so that one draw serves every size. `share`
    is the window's side over the short side of what it is cut from, and the window is then resized; None: it has as
    many px as are asked for. `whole`: pixels are taken as they are, as for a sample of any shape.
    """

    top: float = 0.5
    left: float = 0.5
    flip: bool = False
    choice: float = 0.0
    share: float | None = None
    whole: bool = False

    def crop(self, array: np.ndarray, image_size: int) -> np.ndarray:
        """The window [image_size, image_size, ...] of colours [H, W, 3], or of values [H, W] that are not mixed."""
        if self.whole:
            return array
        left, top = self.corner(array.shape[0], array.shape[1], image_size)
        side = self.side(array.shape[0], array.shape[1], image_size)
        window = array[top : top + side, left : left + side]
        if side != image_size:
            to, window = (image_size, image_size), np.ascontiguousarray(window)
            window = resize_nearest(window, to) if window.ndim == 2 else resize(Image.fromarray(window), to)
        return window[:, ::-1] if self.flip else window

    def side(self, height: int, width: int, image_size: int) -> int:
        """Of the window, before it is resized to `image_size`, px of an array of that height and width."""
        return image_size if self.share is None else max(1, round(self.share * min(height, width)))

    def corner(self, height: int, width: int, image_size: int) -> tuple[int, int]:
        """(left, top) of the window in an array of that height and width."""
        side = self.side(height, width, image_size)
        return int(self.left * (width - side + 1)), int(self.top * (height - side + 1))

    def choose(self, count: int) -> int:
        """One of `count` alternatives."""
        return int(self.choice * count)


@dataclass(frozen=True)
class Augmentation:
    """How views are drawn; each draw is addressed by (seed, purpose, sample number).

    `shares`: between which shares of the short side the side of a window is drawn; None: windows have a fixed size.
    """

    seed: int
    horizontal_flip_prob: float
    random_crop: bool
    shares: tuple[float, float] | None = None

    @property
    def changes_images(self) -> bool:
        """Whether an image may look different each time it comes."""
        return self.horizontal_flip_prob > 0 or self.random_crop or self.shares is not None

    def views(self, numbers: np.ndarray) -> list[View]:
        """One view for each sample number, int64 [n]."""
        flips = np.zeros(len(numbers), dtype=bool)
        if self.horizontal_flip_prob > 0:
            flips = uniform(self.seed, "flip", numbers)[:, 0] < self.horizontal_flip_prob
        choices = uniform(self.seed, "choice", numbers)[:, 0]
        corners = uniform(self.seed, "crop", numbers, 2) if self.random_crop else np.full((len(numbers), 2), 0.5)
        shares: Sequence[float | None] = [None] * len(numbers)
        if self.shares is not None:
            lo, hi = self.shares
            shares = (lo + (hi - lo) * uniform(self.seed, "crop share", numbers)[:, 0]).tolist()
        rows = zip(corners.tolist(), flips.tolist(), choices.tolist(), shares, strict=True)
        return [View(top, left, flip, choice, share) for (top, left), flip, choice, share in rows]


def to_tensor(images: list[np.ndarray]) -> torch.Tensor:
    """uint8 images [H, W, 3] -> float32 [B, 3, H, W] in [-1, 1]."""
    planes = np.empty((len(images), 3, *images[0].shape[:2]), dtype=np.uint8)  # turned round as bytes: half the time
    for into, image in zip(planes, images, strict=True):
        for channel in range(3):
            into[channel] = image[..., channel]
    return torch.from_numpy(planes).float().div_(127.5).sub_(1)
