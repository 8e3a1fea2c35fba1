"""Small pictures to enlarge: the window, reduced bicubically by torch or by PIL."""

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from ldm.data.fields.derived import Derived
from ldm.data.fields.picture import Picture
from ldm.data.transforms import resize, to_tensor
from ldm.data.user_error import UserError


class LowResolution(Derived):
    """float32 [B, 3, H / factor, W / factor]: the window, reduced bicubically and antialiased (LDM, section 4.4).

    By torch, so that values lie between those of 8 bits.
    """

    yields = "float32 [B, 3, h, w]"

    def __init__(self, factor: int = 4):
        self.given = Picture(factor=factor)
        self.reduces = factor

    def make(self, windows: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        """Raises ValueError for windows whose sides are not multiples of `factor`."""
        size = reduced_size(windows, self.reduces)
        return F.interpolate(windows, size, mode="bicubic", antialias=True).clamp(-1, 1)


class PilBicubic(Derived):
    """The same by PIL out of 8 bits into 8 bits: what a file of the small picture holds."""

    yields = "float32 [B, 3, h, w]"

    def __init__(self, factor: int = 4):
        self.given = Picture(factor=factor)
        self.reduces = factor

    def make(self, windows: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        """Raises ValueError for windows whose sides are not multiples of `factor`."""
        height, width = reduced_size(windows, self.reduces)
        pixels = ((windows + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        return to_tensor([resize(Image.fromarray(np.ascontiguousarray(image)), (width, height)) for image in pixels])


def reduced_size(windows: torch.Tensor, factor: int) -> tuple[int, int]:
    """Height and width of windows [B, C, H, W] over `factor`. Raises ValueError if that is not whole."""
    height, width = windows.shape[2:]
    if height % factor or width % factor:
        raise UserError(
            f"image {height}x{width}: its sides must be multiples of derived.low_resolution.factor={factor}"
        )
    return height // factor, width // factor
