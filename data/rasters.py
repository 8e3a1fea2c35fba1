"""How a picture lies in its file, how it lies when it is seen, and which part of it is used.

The camera's raster is turned upright as EXIF says. What belongs to a picture (a mask, a map, boxes) was made on the one
raster or the other, and is turned with it where that can be told, else refused.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from ldm.data.errors import BadSample
from ldm.data.transforms import Box, fitted, kept, resize, resize_nearest

ORIENTATION = ExifTags.Base.Orientation


def orientation(image: Image.Image) -> int:
    """How the camera was held, 1 to 8 as EXIF numbers it; 1, upright, if it is missing or cannot be read."""
    return said_orientation(image) or 1


def said_orientation(image: Image.Image) -> int | None:
    """As `orientation`, None if it is not recorded, as in a TIFF that Pillow has loaded, which is upright already."""
    try:
        # not the PNG's own method, which decodes all of it to look behind the pixels
        value = Image.Image.getexif(image).get(ORIENTATION)
    except Exception:  # broken metadata is no reason to lose a good picture, and its reader raises nearly anything
        return None
    return value if value in range(1, 9) else None


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """[H, W, ...] as the camera stored it -> as the scene was."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels[:, ::-1] if orientation in (2, 3, 6, 7) else pixels


def upright_boxes(boxes: np.ndarray, orientation: int) -> np.ndarray:
    """Boxes [K, 4] (left, top, right, bottom) in shares of the camera's raster -> of the upright one."""
    left, top, right, bottom = boxes.T
    if orientation >= 5:
        left, top, right, bottom = top, left, bottom, right
    if orientation in (3, 4, 7, 8):
        top, bottom = 1 - bottom, 1 - top
    if orientation in (2, 3, 6, 7):
        left, right = 1 - right, 1 - left
    return np.stack([left, top, right, bottom], 1)


@dataclass(frozen=True)
class Picture:
    """What a field has to know of its picture: (width, height) as it is stored and as it is used, and how it lies."""

    stored: tuple[int, int]
    orientation: int
    size: tuple[int, int]  # upright, cut if it is thin, resized
    window: Box | None = None  # the part that is used, px of it upright; None: all, but for what is cut of thin ones

    @property
    def upright(self) -> tuple[int, int]:
        """(width, height) of the whole picture as it is seen."""
        return self.stored if self.orientation < 5 else self.stored[::-1]

    @property
    def part(self) -> Box | None:
        """left, top, right, bottom of what is used, in shares of the whole; None for all of it."""
        width, height = self.upright
        part = self.window or kept(width, height)
        if part == (0, 0, width, height):
            return None
        return part[0] / width, part[1] / height, part[2] / width, part[3] / height

    def lay(self, values: np.ndarray, said: int | None, what: str) -> np.ndarray:
        """Values [H, W] of the whole picture, upright and of its size, by the nearest pixel.

        `said` is the orientation that their own file gives. Without one they lie as the picture is stored or as it is
        seen, whichever fits. Raises BadSample, naming `what`, where neither does or both do.
        """
        turns = dict.fromkeys([1, self.orientation] if said is None else [said])
        fitting = [turned for turn in turns if self._fits(turned := upright(values, turn))]
        if not fitting:
            sizes = f"{values.shape[1]}x{values.shape[0]}, and its picture {self.stored[0]}x{self.stored[1]}"
            raise BadSample("another shape", f"the {what} has {sizes}{self._turned()}")
        if len(fitting) > 1:
            raise BadSample(
                "turned or not",
                f"the picture is turned by EXIF (orientation {self.orientation}), and the {what} may belong to it "
                "before or after: its shape fits both; write the picture upright, or the orientation into both",
            )
        return resize_nearest(np.ascontiguousarray(fitting[0]), self.size, self._box(fitting[0]))

    def lay_colours(self, pixels: np.ndarray, factor: int = 1) -> np.ndarray:
        """An upright picture, uint8 [H, W, 3], or a scaled copy of this one, on 1 / `factor` of its size, bicubic.

        What has that size already is not changed by a bit. Raises BadSample for another aspect.
        """
        if not self._fits(pixels):
            sizes = f"{pixels.shape[1]}x{pixels.shape[0]}, and its picture {self.upright[0]}x{self.upright[1]}"
            raise BadSample("another shape", f"it has {sizes}")
        size = (-(-self.size[0] // factor), -(-self.size[1] // factor))
        return resize(Image.fromarray(pixels), size, self._box(pixels))

    def _box(self, values: np.ndarray) -> Box | None:
        """The part of the picture in px of an upright raster [H, W, ...] of it; None for all."""
        height, width = values.shape[:2]
        return self.part and (self.part[0] * width, self.part[1] * height, self.part[2] * width, self.part[3] * height)

    def _fits(self, values: np.ndarray) -> bool:
        """Whether they have this picture's shape or, but for the rounding of a scaled copy's sides, its aspect."""
        (height, width), (own_width, own_height) = values.shape[:2], self.upright
        return abs(width * own_height - height * own_width) <= max(width, height, own_width, own_height)

    def _turned(self) -> str:
        return "" if self.orientation == 1 else f", turned by EXIF ({self.upright[0]}x{self.upright[1]} upright)"

    def lay_boxes(self, boxes: np.ndarray, raster: tuple[Any, Any]) -> np.ndarray:
        """Boxes [K, 4] in shares of the whole picture -> in shares of its part, upright; what lies outside has no area.

        `raster` is the (width, height) of what they were drawn on, or nothing of use: then a picture that EXIF turns
        is a BadSample.
        """
        if self.orientation != 1:
            fits = [size for size in dict.fromkeys([self.upright, self.stored]) if size == raster]
            if not fits or self.orientation < 5 or self.upright == self.stored:
                raise BadSample(
                    "turned or not",
                    f"the picture is turned by EXIF (orientation {self.orientation}, stored {self.stored[0]}x"
                    f"{self.stored[1]}), and the json does not tell by width and height to which raster its boxes "
                    "belong; write the picture upright",
                )
            boxes = upright_boxes(boxes, self.orientation) if raster == self.stored else boxes
        if self.part is None:
            return boxes
        corner, far = np.array(self.part[:2] * 2), np.array(self.part[2:] * 2)
        return np.clip((boxes - corner) / (far - corner), 0, 1)


def picture(stored: tuple[int, int], orientation: int, image_size: int) -> Picture:
    """A picture whose shortest side becomes `image_size`."""
    left, top, right, bottom = kept(*stored)
    size = fitted(right - left, bottom - top, image_size)
    return Picture(stored, orientation, size if orientation < 5 else size[::-1])


def framed(picture: Picture, size: tuple[int, int]) -> Picture:
    """A picture on an image of (width, height) `size`: all of it, or its middle where that has another aspect."""
    width, height = picture.upright
    wide, high = float(width), float(height)
    if size[0] * height >= size[1] * width:
        high = width * size[1] / size[0]
    else:
        wide = height * size[0] / size[1]
    left, top = (width - wide) / 2, (height - high) / 2
    return replace(picture, size=size, window=(left, top, left + wide, top + high))
