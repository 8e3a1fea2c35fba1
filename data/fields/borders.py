"""Holes at the border of the image: what a model has to fill in to go on beyond it."""

import numpy as np
import torch

from ldm.data.counter_random import uniform
from ldm.data.fields.derived import Derived
from ldm.data.fields.mask import Mask
from ldm.data.user_error import UserError

SIDES = 4  # left, right, top, bottom


class Borders(Derived):
    """float32 [B, 1, H, W], 1 along one to four sides of the image, drawn for each sample.

    Each of the 15 sets of sides is as likely; a border is between `min_share` and `max_share` of the image wide.
    """

    yields = "float32 [B, 1, H, W]"
    given = Mask(touched=True)
    for_training = True

    def __init__(self, seed: int, min_share: float = 0.125, max_share: float = 0.375):
        if not 0 < min_share <= max_share < 0.5:
            raise UserError(f"Borders: min_share={min_share}, max_share={max_share}: have to lie in (0, 0.5), in order")
        self.seed = seed
        self.min_share = min_share
        self.max_share = max_share

    def make(self, windows: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        """Drawn by (seed, sample number)."""
        height, width = windows.shape[2:]
        draws = uniform(self.seed, "border", numbers.numpy(), 1 + SIDES)
        sets = 1 + (draws[:, :1] * (2**SIDES - 1)).astype(int)
        shares = (self.min_share + (self.max_share - self.min_share) * draws[:, 1:]) * (sets >> np.arange(SIDES) & 1)
        left, right, top, bottom = (shares * [width, width, height, height]).T[..., None]
        columns, rows = np.arange(width) + 0.5, np.arange(height) + 0.5
        beside = (columns < np.maximum(left, left > 0)) | (width - columns < np.maximum(right, right > 0))
        above = (rows < np.maximum(top, top > 0)) | (height - rows < np.maximum(bottom, bottom > 0))
        return torch.from_numpy(beside[:, None, None, :] | above[:, None, :, None]).float()
