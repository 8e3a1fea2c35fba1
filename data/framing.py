"""Which part of a resized picture a batch shows: `crop_size` beside `image_size`.

The short side of a picture becomes `image_size`, and a window of `crop_size` px is cut from it (256 of 1024: eDiff-I's
SR1024; 256 of 384: LDM's OpenImages). Or the window is a share of the short side, drawn for each sample, and is resized
to `image_size` (LDM's super-resolution: between half and all of it).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ldm.data.transforms import View
from ldm.data.user_error import UserError

CropSize = int | Sequence[float] | None


@dataclass(frozen=True)
class Framing:
    """`short_side` of a decoded picture and side of a `window` in a batch, px; `shares`: see Augmentation."""

    short_side: int
    window: int
    shares: tuple[float, float] | None = None

    @property
    def plain(self) -> View:
        """The view without random draws: the largest window, centred."""
        return View(share=self.shares[1] if self.shares else None)


def framing(image_size: int, crop_size: CropSize) -> Framing:
    """Raises ValueError for a window that is larger than its picture."""
    if crop_size is None:
        return Framing(image_size, image_size)
    if isinstance(crop_size, int):
        if not 1 <= crop_size <= image_size:
            raise UserError(
                f"crop_size={crop_size}: a window of that many px is cut from images of image_size={image_size} px; "
                "make it smaller, or draw a share of the short side with crop_size=[0.5,1]"
            )
        return Framing(image_size, crop_size)
    if len(crop_size) != 2 or not 0 < crop_size[0] <= crop_size[1] <= 1:
        raise UserError(f"crop_size={list(crop_size)}: two shares of the short side, from the smaller, as [0.5,1]")
    lo, hi = map(float, crop_size)
    return Framing(math.ceil(image_size / lo), image_size, (lo, hi))
