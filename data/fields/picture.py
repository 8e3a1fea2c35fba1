"""Pixels of a field's own: the image file read again at another size, or another picture beside it."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from ldm.data import rasters
from ldm.data.decoding import PilDecoder, decode_image
from ldm.data.fields.field import Field
from ldm.data.transforms import View, to_tensor
from ldm.data.user_error import UserError


class Pixels(NamedTuple):
    """uint8 [H, W, 3], upright, and the (width, height) of the image that it lies on."""

    values: np.ndarray
    image: tuple[int, int]


class Picture(Field):
    """float32 [B, 3, size, size] in [-1, 1] of the sample's image file, or of the member `extension`.

    With a `size`, px, the file is read again at that size: CLIP's 224 are not enlarged from the 64 of the image. It is
    then the largest square, moved and mirrored as the image is. Without, what the image shows, `factor` times smaller:
    where the image's window begins between the pixels of the smaller picture, these are shifted by bicubic weights.
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

    def read(self, content: bytes, picture: rasters.Picture) -> Pixels:
        """Upright pixels, their short side `size` px; on a framed picture as that says."""
        if self.size is None and picture.window is not None:
            return Pixels(picture.lay_colours(np.asarray(decode_image(content)), self.factor), picture.size)
        return Pixels(PilDecoder()(content, self.size or min(picture.size) // self.factor), picture.size)

    def collate(self, values: Sequence[Pixels], views: Sequence[View], image_size: int) -> torch.Tensor:
        """Cropped and flipped like the image."""
        if self.size is not None:
            views = [replace(view, share=None) for view in views]
        return to_tensor([self._window(*pair, image_size) for pair in zip(values, views, strict=True)])

    def _window(self, pixels: Pixels, view: View, image_size: int) -> np.ndarray:
        """What a view shows of it."""
        small, (width, height) = pixels.values, pixels.image
        if self.size is not None or self.factor == 1 or view.whole:
            return view.crop(small, self.size or image_size // self.factor)
        left, top = view.corner(height, width, image_size)
        side, to = view.side(height, width, image_size), image_size // self.factor
        across, down = small.shape[1] / width, small.shape[0] / height
        ends = (left + side) * across, (top + side) * down
        box = (left * across, top * down, min(ends[0], small.shape[1]), min(ends[1], small.shape[0]))
        begin = round(box[0]), round(box[1])
        if box == (*begin, begin[0] + to, begin[1] + to):  # pixels as they are
            window = small[begin[1] : begin[1] + to, begin[0] : begin[0] + to]
        else:
            window = np.asarray(Image.fromarray(small).resize((to, to), Image.Resampling.BICUBIC, box))
        return window[:, ::-1] if view.flip else window
