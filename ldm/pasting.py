"""What fills a hole put back into its picture, in the picture's own size.

A model draws at the size that it was trained at. What it drew in the hole is enlarged, all else is the file's pixels.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.data import rasters
from ldm.data.decoding import read_picture
from ldm.data.transforms import View, to_tensor
from ldm.drawer import Drawer
from ldm.errors import UserError
from ldm.frames import Frame, check_bounded
from ldm.given_files import content_of, files_of, naming, read_picture_file, reader_of


@dataclass(frozen=True)
class Original:
    """A `picture` [1, 3, H, W] in [-1, 1] of a file's own size, and its `hole` (bool [1, 1, H, W])."""

    picture: Tensor
    hole: Tensor

    def put(self, images: Tensor) -> Tensor:
        """[B, 3, H, W]: the picture with what smaller or larger images [B, 3, h, w] of it have in the hole."""
        drawn = F.interpolate(images, self.picture.shape[-2:], mode="bicubic", antialias=True).clamp(-1, 1)
        return torch.where(self.hole.to(images.device), drawn, self.picture.to(images))


def read_original(tree: Mapping[str, Any], model: Drawer, frame: Frame) -> Original | None:
    """The picture of image= and the hole of mask=, where paste= asks for them. The images are drawn on `frame`.

    Raises ValueError where there is no hole, for a picture that is cut, and for one that would be too large.
    """
    if not tree["paste"]:
        return None
    files = files_of(tree)
    if not {"image", "mask"} <= files.keys() or not frame.by_file:
        raise UserError("paste=true: puts what fills a hole back into its picture; give image= and mask=, or leave it")
    (image, path), (mask, hole) = files["image"], files["mask"]
    with naming(image, path):
        lies = read_picture(content_of(image, path), min(frame.size))
    width, height = lies.upright
    check_bounded((height, width), f"{image}={path}")
    left, top, right, bottom = rasters.framed(lies, frame.size[::-1]).window or (0, 0, width, height)
    if width - (right - left) > 1 or height - (bottom - top) > 1:
        raise UserError(
            f"paste=true: of {path}, {width} x {height} px, the model is shown {round(right - left)} x "
            f"{round(bottom - top)}; leave out height= or width=, so that it is shown all"
        )
    reader = reader_of(model.data, "mask", mask)
    with naming(mask, hole):
        value = reader.read(content_of(mask, hole), rasters.framed(lies, lies.upright))
    inside = reader.collate([value], [View(whole=True)], min(lies.upright)) >= 0.5
    return Original(to_tensor([read_picture_file(image, path)]), inside)
