"""Cutting, resizing, crop and flip: pixels of any size become pixels of the training size.

Pure functions on uint8 arrays [H, W, C]; only `to_tensor` makes tensors. No colour augmentation, no decoding.
"""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from data.draws import uniform

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
    if image.size != size:
        image = image.resize(size, Image.Resampling.BICUBIC, box=box)
    return np.asarray(image)


def resize_nearest(values: np.ndarray, size: tuple[int, int], box: Box | None = None) -> np.ndarray:
    """Resize uint8 or int32 [H, W], or the part `box`, to (width, height) without mixing values, for masks and maps."""
    return np.asarray(Image.fromarray(values).resize(size, Image.Resampling.NEAREST, box=box))


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
    planes = np.empty((len(images), 3, *images[0].shape[:2]), dtype=np.uint8)  # turned round as bytes: half the time
    for into, image in zip(planes, images, strict=True):
        for channel in range(3):
            into[channel] = image[..., channel]
    return torch.from_numpy(planes).float().div_(127.5).sub_(1)
