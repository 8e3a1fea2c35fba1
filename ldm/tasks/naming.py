"""What lies on a canvas, by class: things are taken apart, each laid on white, and a classifier names it."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.tasks.finding import things

SIDE = 32  # px of a thing on white
MARGIN = 0.06  # of its longer side
Part = tuple[int, Tensor]  # the place of an image, and which of its pixels are of one thing, bool [H, W]


def on_white(image: Tensor, inside: Tensor) -> Tensor:
    """What is `inside` (bool [H, W], not empty) of an image [3, H, W] in [-1, 1], fitted into [3, SIDE, SIDE]."""
    rows, columns = (inside.any(axis).nonzero().flatten() for axis in (1, 0))
    part = slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)
    height, width = (own.stop - own.start for own in part)
    side = max(height, width)
    side += 2 * max(1, round(side * MARGIN))
    top, left = (side - height) // 2, (side - width) // 2
    square = torch.ones(3, side, side)
    square[:, top : top + height, left : left + width] = image[:, part[0], part[1]].where(inside[part], 1.0)
    return F.interpolate(square[None], (SIDE, SIDE), mode="bicubic", antialias=True)[0].clamp(-1, 1)


def cut_out(images: Tensor, inside: Tensor) -> tuple[Tensor, list[Part]]:
    """The things [M, 3, SIDE, SIDE] of images [N, 3, H, W], on white, where they are `inside` (bool [N, H, W])."""
    parts = [(place, part) for place, mask in enumerate(inside) for part in map(torch.from_numpy, things(mask))]
    found = [on_white(images[place], part) for place, part in parts]
    return torch.stack(found) if found else torch.ones(0, 3, SIDE, SIDE), parts


def classes_of(parts: list[Part], maps: Tensor) -> Tensor:
    """The class [M] that most pixels of each thing have on maps [N, H, W], where 0 is the ground and 1 class 0.

    It is -1 for what is mostly ground.
    """
    return torch.tensor([int(maps[place][part].mode().values) - 1 for place, part in parts])


def named(images: Tensor, inside: Tensor, classify: Callable[[Tensor], Tensor]) -> Tensor:
    """Maps [N, H, W] of images [N, 3, H, W]: 0 is the ground, the class of `classify` and one what is `inside`.

    classify(things on white [M, 3, SIDE, SIDE]) is their classes [M].
    """
    cut, parts = cut_out(images, inside)
    found = torch.zeros(inside.shape, dtype=torch.long)
    for (place, part), name in zip(parts, classify(cut) if parts else (), strict=True):
        found[place][part] = int(name) + 1
    return found
