"""Masks of the foreground, or of a hole."""

from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage

from ldm.data.fields.field import Field
from ldm.data.label_images import decode_mask
from ldm.data.rasters import Picture
from ldm.data.transforms import View


class Mask(Field):
    """A foreground mask, float32 [B, 1, H, W] of 0 and 1, cut from its image member like the image itself.

    The foreground is white, 1 where there are only 0 and 1, opaque, or the one colour beside black. Where the file is
    larger than the image the nearest pixel tells; with `touched` a pixel is 1 if any of those that it stands for is, so
    that no part of a hole is left out.
    """

    lies_on_picture = True
    yields = "float32 [B, 1, H, W]"

    def __init__(self, extension: str = "mask.png", touched: bool = False):
        self.extension = extension
        self.touched = touched

    def read(self, content: bytes, picture: Picture) -> np.ndarray:
        """uint8 [H, W] of 0 and 1, resized."""
        values, orientation = decode_mask(content)
        if self.touched:
            reduction = -(-min(values.shape) // min(picture.size))
            values = ndimage.maximum_filter(values, size=reduction // 2 * 2 + 1)
        return picture.lay(values, orientation, "mask")

    def collate(self, values: Sequence[np.ndarray], views: Sequence[View], image_size: int) -> torch.Tensor:
        """Cropped and flipped with the image."""
        windows = [view.crop(value, image_size) for value, view in zip(values, views, strict=True)]
        return torch.from_numpy(np.stack(windows)).float()[:, None]
