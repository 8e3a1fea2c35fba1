"""A sheet of samples, each beside itself with what was asked for drawn over it, such as boxes with names."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ldm.data.transforms import to_tensor
from ldm.images import enlarge, grid, save_image, to_uint8

Drawing = Callable[[Image.Image], Image.Image]  # a faded copy of a picture with something over it
LEGIBLE = 192  # px of the shorter side, at least
MAX_SHOWN = 64  # samples


def write_condition_sheet(path: Path, images: Tensor, drawing: Drawing, columns: int, factor: int = 1) -> Path:
    """Write images [B, 3, H, W] in [-1, 1] with their drawings, `columns` pairs in a row; all enlarged by `factor`, or
    by more until names can be read. Of more than MAX_SHOWN the first.
    """
    factor = max(factor, -(-LEGIBLE // min(images.shape[2:])))
    pairs = []
    for image in enlarge(to_uint8(images[:MAX_SHOWN]), factor):
        pixels = image.permute(1, 2, 0).contiguous().cpu().numpy()
        pairs += [pixels, np.asarray(drawing(Image.fromarray(pixels)))]
    sheet = torch.cat([to_tensor([pixels]) for pixels in pairs])
    return save_image(path, grid(sheet, columns=min(2 * columns, len(pairs)), padding=4))
