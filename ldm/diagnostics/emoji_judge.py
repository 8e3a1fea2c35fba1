"""What is seen on a canvas, by rules without training: where things lie on a plain ground, and which emoji each is.

A thing is the built-in emoji whose picture, shrunk to a few pixels on the same ground, is nearest to it.
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.data.making.cutouts import Emoji, cutout
from ldm.tasks.finding import Box, found_boxes, ground_of

SIDE = 12  # px of the square that things are compared in


class Thing(NamedTuple):
    """What lies in a box (left, top, right, bottom in shares), and how far it is from what it is called."""

    box: Box
    name: str
    distance: float


class Judge:
    """Tells the `known` emoji apart by their names; all pictures (styles) of a name count as it."""

    def __init__(self, known: Sequence[Emoji]):
        pictures = [(one.caption, pixels) for one in known if (pixels := cutout(one)) is not None]
        self.names = [name for name, _ in pictures]
        self.pictures = torch.stack([_shrunk(pixels) for _, pixels in pictures])  # [K, 4, SIDE, SIDE]

    def things(self, image: Tensor, among: Collection[str] | None = None) -> list[Thing]:
        """What is seen on an image [3, H, W] in [-1, 1], the surest first; as names only those of `among`."""
        ground = ground_of(image)
        places = [place for place, name in enumerate(self.names) if among is None or name in among]
        known = self.pictures[places]
        shown = known[:, :3] + (1 - known[:, 3:]) * ground[:, None, None]
        found = []
        for box in found_boxes(image):
            apart = (shown - _cut(image, box, ground)).square().mean((1, 2, 3))
            nearest = int(apart.argmin())
            found.append(Thing(box, self.names[places[nearest]], apart[nearest].item()))
        return sorted(found, key=lambda thing: thing.distance)


def _cut(image: Tensor, box: Box, ground: Tensor) -> Tensor:
    """What lies in a box, in the middle of a square of the ground: [3, SIDE, SIDE]."""
    height, width = image.shape[1:]
    left, top, right, bottom = (round(edge * side) for edge, side in zip(box, (width, height) * 2, strict=True))
    part = image[:, top:bottom, left:right] - ground[:, None, None]
    return _squared(part) + ground[:, None, None]


def _shrunk(pixels: np.ndarray) -> Tensor:
    """RGBA uint8 [h, w, 4] -> [4, SIDE, SIDE]: colours in [-1, 1] times the opacity, and the opacity."""
    values = torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255
    opacity = values[3:]
    return _squared(torch.cat([(2 * values[:3] - 1) * opacity, opacity]))


def _squared(x: Tensor) -> Tensor:
    """[C, h, w] -> [C, SIDE, SIDE], with zeros beside the shorter side."""
    height, width = x.shape[1:]
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    square = F.pad(x, (left, side - width - left, top, side - height - top))
    return F.interpolate(square[None], (SIDE, SIDE), mode="bilinear", antialias=True)[0]
