"""Boxes of an annotation file, and a picture that EXIF turns: on which of the two rasters were they drawn?"""

from typing import Any

import numpy as np

from ldm.data.errors import BadSample
from ldm.data.rasters import upright_boxes

UNTOLD = (0.0, 0.0)  # the raster of annotations that do not say theirs


def upright_objects(
    objects: list[dict[str, Any]], raster: tuple[float, float], stored: tuple[int, int], orientation: int
) -> list[dict[str, Any]]:
    """Objects of the upright image from those drawn at `raster`, given the stored size and EXIF's orientation.

    The annotation's size tells whether boxes were drawn before or after the turn. BadSample where it fits neither, or
    both (a picture that is upside down or mirrored): boxes in the wrong place are worse than none.
    """
    seen = stored[::-1] if orientation >= 5 else stored
    before, after = _same_shape(raster, stored), _same_shape(raster, seen)
    at = "at a size that they do not tell" if raster == UNTOLD else f"at {raster[0]:g}x{raster[1]:g}"
    sizes = f"annotated {at}, the image is {stored[0]}x{stored[1]}"
    if not before and not after:
        raise BadSample("boxes of another shape", sizes)
    if orientation == 1 or not before:
        return objects
    if after:
        raise BadSample("boxes before or after the turn", f"EXIF turns it (orientation {orientation}); {sizes}")
    return [{**entry, "box": _turned(entry["box"], orientation)} for entry in objects]


def _same_shape(one: tuple[float, float], other: tuple[float, float]) -> bool:
    """Whether one is the other, perhaps scaled and rounded to whole pixels."""
    return abs(one[0] * other[1] - one[1] * other[0]) <= max(*one, *other)


def _turned(box: list[float], orientation: int) -> list[float]:
    (turned,) = upright_boxes(np.array([box]), orientation).tolist()
    return [round(share, 6) for share in turned]
