"""Pictures in rows and columns with their names, as one PNG."""

import io
from collections.abc import Sequence
from pathlib import Path

from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ldm.files import write_bytes
from ldm.images import picture_of
from ldm.report.theme import FONTS, LIGHT

SIDE = 96  # px of a picture at least, as far as whole enlargements go
GAP, LINE = 6, 18  # px between pictures, and of a line of text
LARGEST, SMALLEST = 13, 7  # px of the font


def labelled_sheet(path: Path, images: Tensor, columns: Sequence[str], rows: Sequence[str], told: str = "") -> Path:
    """Write images [rows, columns, 3, H, W] in [-1, 1], the names of `columns` at the top, a text above each row, and
    what is `told` of all below them.
    """
    factor = max(1, -(-SIDE // max(images.shape[-2:])))
    height, width = (side * factor for side in images.shape[-2:])
    across = len(columns) * (width + GAP) + GAP
    down = LINE + len(rows) * (LINE + height + GAP) + GAP + (LINE if told else 0)
    sheet = Image.new("RGB", (across, down), LIGHT.surface)
    draw = ImageDraw.Draw(sheet)
    for place, name in enumerate(columns):
        middle = GAP + place * (width + GAP) + width / 2
        draw.text((middle, 2), name, LIGHT.muted, font_of(name, width), anchor="ma")
    for line, text in enumerate(rows):
        top = LINE + line * (LINE + height + GAP)
        draw.text((GAP, top + 2), text, LIGHT.ink, font_of(text, across - 2 * GAP))
        for place in range(len(columns)):
            sheet.paste(picture_of(images[line, place], factor), (GAP + place * (width + GAP), top + LINE))
    draw.text((GAP, down - LINE), told, LIGHT.muted, font_of(told, across - 2 * GAP))
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG", optimize=True)
    return write_bytes(path, buffer.getvalue())


def font_of(text: str, width: float, largest: int = LARGEST, smallest: int = SMALLEST) -> ImageFont.FreeTypeFont:
    """A font of at most `largest` px in which the text is no wider than `width` px, if one of `smallest` or more is."""
    installed = set(font_manager.fontManager.get_font_names())
    file = font_manager.findfont(next(font for font in FONTS if font in installed))
    size = largest
    while size > smallest and ImageFont.truetype(file, size).getlength(text) > width:
        size -= 1
    return ImageFont.truetype(file, size)
