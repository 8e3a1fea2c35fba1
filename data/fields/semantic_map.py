"""Maps of class numbers, one for each pixel."""

from collections.abc import Sequence

import numpy as np
import torch

from ldm.data.fields.field import Field
from ldm.data.label_images import decode_labels
from ldm.data.rasters import Picture
from ldm.data.transforms import View


class SemanticMap(Field):
    """Class numbers of the pixels, int64 [B, H, W], as a grey or palette image has them, cut like the image itself."""

    lies_on_picture = True
    yields = "int64 [B, H, W]"
    reduces = 1

    def __init__(self, extension: str = "segmentation.png"):
        self.extension = extension

    def read(self, content: bytes, picture: Picture) -> np.ndarray:
        """uint8 or int32 [H, W], resized with the nearest pixel."""
        values, orientation = decode_labels(content)
        return picture.lay(values, orientation, "map of classes")

    def collate(self, values: Sequence[np.ndarray], views: Sequence[View], image_size: int) -> torch.Tensor:
        """Cropped and flipped with the image."""
        windows = [view.crop(value, image_size) for value, view in zip(values, views, strict=True)]
        return torch.from_numpy(np.stack(windows)).long()
