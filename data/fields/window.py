"""The window itself under another name."""

import torch

from ldm.data.fields.derived import Derived
from ldm.data.fields.picture import Picture


class Window(Derived):
    """float32 [B, 3, H, W] in [-1, 1]: what the batch shows of the image, as runs begun by older code saw a style."""

    yields = "float32 [B, 3, H, W]"
    given = Picture()

    def make(self, windows: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        return windows
