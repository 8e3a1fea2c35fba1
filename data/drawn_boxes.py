"""Boxes with names, drawn over a picture."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

# Dark enough for white letters, told apart by those who see no red or no green too.
COLOURS = ("#0072b2", "#b34700", "#00795a", "#8a3d6b", "#4d4d4d", "#7a5c00", "#5b3fa6", "#a61e1e")
FADED = 0.6  # towards white


def draw_boxes(picture: Image.Image, boxes: np.ndarray, names: Sequence[str], kinds: Sequence[int]) -> Image.Image:
    """A faded copy of an RGB picture with boxes [K, 4], left, top, right, bottom in shares of it; of one colour for
    each number of `kinds`. A name stands in its box at the top left.
    """
    drawn = Image.blend(picture, Image.new("RGB", picture.size, "white"), FADED)
    pen, width = ImageDraw.Draw(drawn), max(1, min(picture.size) // 96)
    font = ImageFont.load_default(size=max(8, min(picture.size) // 16))
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    for number in np.argsort(-areas, kind="stable"):  # small ones last, so that they are seen on large ones
        left, top, right, bottom = boxes[number] * np.array(picture.size * 2)
        colour = COLOURS[kinds[number] % len(COLOURS)]
        corners = (round(left), round(top), max(round(right) - 1, round(left)), max(round(bottom) - 1, round(top)))
        pen.rectangle(corners, outline=colour, width=width)
        label = pen.textbbox(corners[:2], names[number], font=font)
        pen.rectangle((*corners[:2], label[2] + 2, label[3] + 2), fill=colour)
        pen.text((corners[0] + 1, corners[1]), names[number], font=font, fill="white")
    return drawn
