"""Boxes with names, drawn over a picture."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

# Dark enough for white letters, told apart by those who see no red or no green too.
COLOURS = ("#0072b2", "#b34700", "#00795a", "#8a3d6b", "#4d4d4d", "#7a5c00", "#5b3fa6", "#a61e1e")
FADED = 0.6  # towards white


def draw_boxes(picture: Image.Image, boxes: np.ndarray, names: Sequence[str], kinds: Sequence[int]) -> Image.Image:
    """A faded copy of an RGB picture with boxes [K, 4], left, top, right, bottom in shares of it; of one colour for
    each number of `kinds`. A name stands at the top left of its box, moved into the picture where it would leave it.
    """
    drawn = Image.blend(picture, Image.new("RGB", picture.size, "white"), FADED)
    pen, width = ImageDraw.Draw(drawn), max(1, min(picture.size) // 96)
    font = ImageFont.load_default(size=max(8, min(picture.size) // 16))
    colours = [COLOURS[kind % len(COLOURS)] for kind in kinds]
    corners = []
    for box, colour in zip(boxes, colours, strict=True):
        left, top, right, bottom = (round(share) for share in box * np.array(picture.size * 2))
        corners.append((left, top))
        pen.rectangle((left, top, max(right - 1, left), max(bottom - 1, top)), outline=colour, width=width)
    for (left, top), name, colour in zip(corners, names, colours, strict=True):
        wide, high = (round(side) + 2 for side in pen.textbbox((0, 0), name, font=font)[2:])
        left, top = max(min(left, picture.width - wide), 0), max(min(top, picture.height - high), 0)
        pen.rectangle((left, top, left + wide - 1, top + high - 1), fill=colour)
        pen.text((left + 1, top), name, font=font, fill="white")
    return drawn
