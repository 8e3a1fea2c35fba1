"""Pixels of a field's own: the image file read again at another size, or another picture beside it."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from ldm.data import rasters
from ldm.data.decoding import PilDecoder, decode_image
from ldm.data.fields.field import Field
from ldm.data.transforms import View, to_tensor
from ldm.data.user_error import UserError


class Picture(Field):
    """float32 [B, 3, size, size] in [-1, 1] of the sample's image file, or of the member `extension`.

    With a `size`, px, the file is read again at that size: CLIP's 224 are not enlarged from the 64 of the image. It is
    then the largest square, moved and mirrored as the image is. Without, what the image shows, `factor` times smaller.
    """

    lies_on_picture = True
    yields = "float32 [B, 3, H, W]"

    def __init__(self, size: int | None = None, factor: int = 1, extension: str | None = None):
        if size is not None and (size < 1 or factor != 1):
            raise UserError(f"Picture: size={size} has to be at least 1, and factor={factor} goes without a size")
        if factor < 1:
            raise UserError(f"Picture: factor={factor} has to be at least 1")
        self.size = size
        self.factor = factor
        self.reduces = factor if size is None else None
        self.extension = extension

    def read(self, content: bytes, picture: rasters.Picture) -> np.ndarray:
        """uint8 [H, W, 3], upright, its short side `size` px; on a framed picture as that says."""
        if self.size is None and picture.window is not None:
            return picture.lay_colours(np.asarray(decode_image(content)), self.factor)
        return PilDecoder()(content, self.size or min(picture.size) // self.factor)

    def collate(self, values: Sequence[np.ndarray], views: Sequence[View], image_size: int) -> torch.Tensor:
        """Cropped and flipped like the image."""
        if self.size is not None:
            views = [replace(view, share=None) for view in views]
        side = self.size or image_size // self.factor
        return to_tensor([view.crop(value, side) for value, view in zip(values, views, strict=True)])
