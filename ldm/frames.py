"""Of which size images are drawn where a file sets it: the size that is asked for, and the one that a model can draw.

A map, a small picture or a picture with a hole may have any size. It is filled up to what the network can divide by
repeating its last rows and columns, and what is drawn there is cut off again.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ldm.data.rasters import Picture
from ldm.data.transforms import fitted
from ldm.errors import UserError

log = logging.getLogger(__name__)

MAX_PIXELS = 1 << 26  # of an image whose size a file sets


@dataclass(frozen=True)
class Frame:
    """(height, width) of the images, px, as they are asked for and as they are `drawn`; whether a file sets it."""

    size: tuple[int, int]
    drawn: tuple[int, int]
    by_file: bool = False

    def filled(self, values: Tensor, reduces: int) -> Tensor:
        """Values [..., h, w] that lie on an image of `size`, `reduces` times smaller, on one as it is `drawn`."""
        rows, columns = (
            torch.arange(-(-drawn // reduces)).clamp(max=side - 1)
            for drawn, side in zip(self.drawn, values.shape[-2:], strict=True)
        )
        return values[..., rows[:, None], columns]

    def cut(self, images: Tensor) -> Tensor:
        """Images [..., H, W] as they were asked for, of those that were drawn."""
        return images[..., : self.size[0], : self.size[1]]


def size_by(own: tuple[int, int], tree: Mapping[str, Any], side: int, resized: bool) -> tuple[int, int]:
    """(height, width), px, that `tree` asks for beside a file that would make (width, height) `own`.

    Of height= and width= one follows from the other; without both it is the file's own, or where that is `resized`, or
    image_size= is given, its shorter side is `side`.
    """
    height, width = tree["height"], tree["width"]
    if tree["image_size"] is not None and (height or width):
        return height or side, width or side
    if height and width:
        return height, width
    if height:
        return height, max(round(own[0] * height / own[1]), 1)
    if width:
        return max(round(own[1] * width / own[0]), 1), width
    if resized or tree["image_size"] is not None:
        own = fitted(*own, side)
    return own[1], own[0]


def check_bounded(size: tuple[int, int], given: str) -> None:
    """Raises ValueError for more than MAX_PIXELS, naming the file that is `given`."""
    if size[0] * size[1] > MAX_PIXELS:
        raise UserError(
            f"{given}: makes images of {size[1]} x {size[0]} px, more than {MAX_PIXELS >> 20} million; cut it, or "
            "say a smaller image_size=, or height= and width="
        )


def tell_changes(given: str, picture: Picture, reduces: int | None) -> None:
    """Say what of a file is not used, because the image has another shape, and that one is resized which is taken as it
    is otherwise, on 1 / `reduces` of the image. What is lost where the image's sides are rounded, less than one of its
    pixels, is not said.
    """
    (width, height), (left, top, right, bottom) = picture.upright, picture.window or (0, 0, *picture.upright)
    least = max(1, (right - left) / picture.size[0])  # px of the file, one of the image
    if width - (right - left) > least or height - (bottom - top) > least:
        log.warning(
            "%s: of %d x %d px the middle %d x %d are used; leave out height= or width= to use all",
            given, width, height, round(right - left), round(bottom - top),
        )  # fmt: skip
    size = [-(-side // (reduces or 1)) for side in picture.size]
    if reduces is not None and size != [width, height]:
        log.warning("%s: its %d x %d px are resized to %d x %d", given, width, height, *size)
