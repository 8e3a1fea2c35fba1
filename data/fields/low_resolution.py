"""Small pictures to enlarge."""

import torch
import torch.nn.functional as F

from ldm.data.fields.derived import Derived
from ldm.data.fields.picture import Picture
from ldm.data.user_error import UserError


class LowResolution(Derived):
    """float32 [B, 3, H / factor, W / factor]: the window, reduced bicubically and antialiased (LDM, section 4.4)."""

    yields = "float32 [B, 3, h, w]"

    def __init__(self, factor: int = 4):
        self.given = Picture(factor=factor)
        self.reduces = factor

    def make(self, windows: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        """Raises ValueError for windows whose sides are not multiples of `factor`."""
        height, width = windows.shape[2:]
        if height % self.reduces or width % self.reduces:
            raise UserError(
                f"image {height}x{width}: its sides must be multiples of derived.low_resolution.factor={self.reduces}"
            )
        size = (height // self.reduces, width // self.reduces)
        return F.interpolate(windows, size, mode="bicubic", antialias=True).clamp(-1, 1)
