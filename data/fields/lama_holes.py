"""Holes of strokes and boxes as LaMa draws them (arXiv 2109.07161), by the numbers of its public configurations."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from ldm.data.counter_random import uniform
from ldm.data.fields.derived import Derived
from ldm.data.fields.mask import Mask
from ldm.data.user_error import UserError

TURNS = 4  # directions of a line: 0.01, 1.01, 2.01, 3.01 rad from downwards, to one side or the other
MAX_LINES = 5  # of a stroke
ATTEMPTS = 32  # at a hole of at most `max_share`
THINNEST = 0.75  # px, the least half width: a line covers a pixel's centre wherever it begins


class LamaHoles(Derived):
    """float32 [B, 1, H, W], 1 in the hole: several strokes, or with `box_prob` several boxes, drawn for each sample.

    A stroke is one to five lines with round ends, each beginning where the last one ended. `num_strokes`, `length`,
    `width`, `num_boxes` and `box_side` are [least, most]; all lengths in px of an image of `of_size`, and scaled to
    others by the short side. Boxes keep `box_margin` from the border. A hole of more than `max_share` of the image is
    drawn again. Raises ValueError for ranges that are none.
    """

    yields = "float32 [B, 1, H, W]"
    given = Mask(touched=True)
    for_training = True

    def __init__(
        self,
        seed: int,
        of_size: int,
        num_strokes: Sequence[int],
        length: Sequence[int],
        width: Sequence[int],
        box_prob: float = 0.0,
        num_boxes: Sequence[int] = (1, 4),
        box_side: Sequence[int] = (30, 149),
        box_margin: int = 10,
        max_share: float = 1.0,
    ):
        ranges = {"num_strokes": num_strokes, "length": length, "width": width, "num_boxes": num_boxes}
        for name, ends in {**ranges, "box_side": box_side}.items():
            if len(ends) != 2 or not 1 <= ends[0] <= ends[1]:
                raise UserError(f"LamaHoles: {name}={list(ends)} has to be [least, most], at least 1")
        if not 0 <= box_prob <= 1 or not 0 < max_share <= 1:
            raise UserError(f"LamaHoles: box_prob={box_prob} and max_share={max_share} have to be shares")
        if of_size < 1:
            raise UserError(f"LamaHoles: of_size={of_size} has to be at least 1 px")
        if box_prob and box_side[1] + 2 * box_margin > of_size:
            raise UserError(f"LamaHoles: of_size={of_size} has no room for box_side={list(box_side)} and its margins")
        self.seed = seed
        self.of_size = of_size
        self.num_strokes = num_strokes
        self.length = length
        self.width = width
        self.box_prob = box_prob
        self.num_boxes = num_boxes
        self.box_side = box_side
        self.box_margin = box_margin
        self.max_share = max_share

    def make(self, windows: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        """Drawn by (seed, sample number)."""
        shape = (windows.shape[2], windows.shape[3])
        return torch.from_numpy(np.stack([self._hole(number, shape) for number in numbers.tolist()])).float()[:, None]

    def _hole(self, number: int, shape: tuple[int, int]) -> np.ndarray:
        """The first of the sample's holes that is small enough, or else the smallest."""
        found = None
        for attempt in range(ATTEMPTS):
            hole = self._drawn(number, attempt, shape)
            if hole.mean() <= self.max_share:
                return hole
            found = hole if found is None or hole.mean() < found.mean() else found
        assert found is not None
        return found

    def _drawn(self, number: int, attempt: int, shape: tuple[int, int]) -> np.ndarray:
        count = 2 + max((3 + 3 * MAX_LINES) * self.num_strokes[1], 4 * self.num_boxes[1])
        draws = iter(uniform(self.seed, f"lama hole {attempt}", np.array([number]), count)[0].tolist())
        hole = np.zeros(shape, dtype=bool)
        (self._boxes if next(draws) < self.box_prob else self._strokes)(hole, draws, min(shape) / self.of_size)
        return hole

    def _strokes(self, hole: np.ndarray, draws: Iterator[float], scale: float) -> None:
        height, width = hole.shape
        for stroke in range(_between(draws, *self.num_strokes)):
            x, y = next(draws) * width, next(draws) * height
            for _ in range(_between(draws, 1, MAX_LINES)):
                angle = (0.01 + _between(draws, 0, TURNS - 1)) * (-1) ** (stroke + 1)
                length, thick = (scale * _between(draws, *ends) for ends in (self.length, self.width))
                end_x = min(max(x + length * math.sin(angle), 0), width)
                end_y = min(max(y + length * math.cos(angle), 0), height)
                _line(hole, (x, y), (end_x, end_y), thick)
                x, y = end_x, end_y

    def _boxes(self, hole: np.ndarray, draws: Iterator[float], scale: float) -> None:
        margin = scale * self.box_margin
        for _ in range(_between(draws, *self.num_boxes)):
            sides = [scale * _between(draws, *self.box_side) for _ in range(2)]
            starts = [
                round(margin + next(draws) * (room - 2 * margin - side))
                for room, side in zip(hole.shape, sides, strict=True)
            ]
            top, left = starts
            bottom, right = (start + max(round(side), 1) for start, side in zip(starts, sides, strict=True))
            hole[top:bottom, left:right] = True


def _between(draws: Iterator[float], least: int, most: int) -> int:
    """A whole number from `least` to `most`, both among them."""
    return least + int(next(draws) * (most - least + 1))


def _line(hole: np.ndarray, start: tuple[float, float], end: tuple[float, float], thick: float) -> None:
    """Mark the pixels whose centre is at most half of `thick` px away from the line between two places (x, y)."""
    radius = max(thick / 2, THINNEST)
    (x, y), (along_x, along_y) = start, (end[0] - start[0], end[1] - start[1])
    left, right = (int(max(side, 0)) for side in (min(x, end[0]) - radius, max(x, end[0]) + radius + 1))
    top, bottom = (int(max(side, 0)) for side in (min(y, end[1]) - radius, max(y, end[1]) + radius + 1))
    part = hole[top:bottom, left:right]
    columns = np.arange(left, left + part.shape[1])[None] + 0.5 - x
    rows = np.arange(top, top + part.shape[0])[:, None] + 0.5 - y
    share = np.clip((columns * along_x + rows * along_y) / max(along_x**2 + along_y**2, 1e-12), 0, 1)
    part |= (columns - share * along_x) ** 2 + (rows - share * along_y) ** 2 <= radius**2
