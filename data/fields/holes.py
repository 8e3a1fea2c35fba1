"""Holes to fill."""

import numpy as np
import torch

from ldm.data.counter_random import uniform
from ldm.data.fields.derived import Derived
from ldm.data.fields.mask import Mask
from ldm.data.user_error import UserError


class Holes(Derived):
    """float32 [B, 1, H, W], 1 in one to `max_boxes` boxes of an eighth to half of each side, drawn for each sample."""

    yields = "float32 [B, 1, H, W]"
    given = Mask(touched=True)
    for_training = True

    def __init__(self, seed: int, max_boxes: int = 4):
        if max_boxes < 1:
            raise UserError(f"Holes: max_boxes={max_boxes} has to be at least 1")
        self.seed = seed
        self.max_boxes = max_boxes

    def make(self, windows: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        """Drawn by (seed, sample number)."""
        draws = torch.from_numpy(_inner(uniform(self.seed, "hole", numbers.numpy(), 1 + 4 * self.max_boxes))).float()
        boxes = draws[:, 1:].view(-1, self.max_boxes, 4, 1)
        size = 0.125 + 0.375 * boxes[:, :, :2]
        start = boxes[:, :, 2:] * (1 - size)
        inside = [
            (places >= start[:, :, axis]) & (places < start[:, :, axis] + size[:, :, axis])  # [B, max_boxes, side]
            for axis, places in enumerate((torch.arange(side) + 0.5) / side for side in windows.shape[2:])
        ]
        used = torch.arange(self.max_boxes) <= (draws[:, :1] * self.max_boxes).floor()  # [B, max_boxes]
        covered = inside[0][..., :, None] & inside[1][..., None, :] & used[:, :, None, None]
        return covered.any(1, keepdim=True).float()


def _inner(draws: np.ndarray) -> np.ndarray:
    """Draws moved to the centres of 2^52 cells, from 53 bits: the same values that older versions drew."""
    return np.floor(draws * 2.0**52) * 2.0**-52 + 2.0**-53
