"""Holes of the shape of objects, which are told by a map of classes or by the opacity of the image itself."""

import zlib
from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage

from ldm.data.errors import BadSample
from ldm.data.fields.field import Field
from ldm.data.fields.mask import Mask
from ldm.data.label_images import decode_labels, decode_opacity
from ldm.data.rasters import Picture
from ldm.data.transforms import View
from ldm.data.user_error import UserError


class ObjectHole(Field):
    """float32 [B, 1, H, W], 1 on one object of the image and around it, `grow` times the short side wide.

    The objects are the connected parts of each class of the map `extension` that is not in `background`; with
    `extension=null` those of the image file's own opaque pixels. Of those that the window shows, with at least
    `min_share` of its area, one is drawn for each sample number; where none is drawn (validation) the largest is taken.
    With `moved` its shape lies elsewhere in the window, as in LaMa's holes of segmentation (arXiv 2109.07161): the
    object is then not what the image had behind the hole. A window that shows no object has no hole.
    """

    lies_on_picture = True
    yields = "float32 [B, 1, H, W]"
    given = Mask(touched=True)

    def __init__(
        self,
        extension: str | None = "segmentation.png",
        background: Sequence[int] = (0,),
        grow: float = 0.02,
        min_share: float = 0.005,
        moved: bool = False,
    ):
        if grow < 0 or not 0 < min_share < 1:
            raise UserError(f"ObjectHole: grow={grow} has to be at least 0, min_share={min_share} in (0, 1)")
        self.extension = extension
        self.background = tuple(background)
        self.grow = grow
        self.min_share = min_share
        self.moved = moved

    def read(self, content: bytes, picture: Picture) -> np.ndarray:
        """Numbers of classes [H, W], resized with the nearest pixel. BadSample where there is no object."""
        if self.extension is None:
            values, orientation = decode_opacity(content)
        else:
            values, orientation = decode_labels(content)
        found = picture.lay(values, orientation, "map of objects")
        if np.isin(found, self.background).all():
            raise BadSample("no object", f"all of it is of the background's classes, {list(self.background)}")
        return found

    def collate(self, values: Sequence[np.ndarray], views: Sequence[View], image_size: int) -> torch.Tensor:
        """Cropped and flipped with the image, then one object of what is seen."""
        windows = [view.crop(value, image_size) for value, view in zip(values, views, strict=True)]
        holes = [self._hole(window, view) for window, view in zip(windows, views, strict=True)]
        return torch.from_numpy(np.stack(holes)).float()[:, None]

    def _hole(self, window: np.ndarray, view: View) -> np.ndarray:
        objects = self._objects(window)
        if not objects:
            return np.zeros(window.shape, dtype=bool)
        objects.sort(key=lambda part: -int(part.sum()))
        hole = objects[view.choose(len(objects))]
        if self.moved:
            seed = [int(view.choice * 2**53), zlib.crc32(hole.tobytes())]  # differs where the choice is the same
            hole = _moved(hole, np.random.Generator(np.random.Philox(seed)))
        reach = self.grow * min(window.shape)
        return ndimage.distance_transform_edt(~hole) <= reach if reach > 0 else hole

    def _objects(self, window: np.ndarray) -> list[np.ndarray]:
        """Those large enough, of which there are few: a noisy map has tens of thousands of parts."""
        parts: list[np.ndarray] = []
        for number in np.setdiff1d(window, self.background):
            places, _ = ndimage.label(window == number)
            large = np.bincount(places.ravel()) / window.size >= self.min_share
            parts += [places == place for place in np.flatnonzero(large) if place]  # 0 is no part
        return parts


def _moved(part: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """A part [H, W] (bool) of a window, moved so that it stays inside."""
    rows, columns = (np.flatnonzero(part.any(axis)) for axis in (1, 0))
    by = [
        generator.integers(-places[0], side - places[-1])
        for places, side in zip((rows, columns), part.shape, strict=True)
    ]
    return np.roll(part, by, (0, 1))
