"""Decoded pixels of any kind as 8-bit RGB: transparency lies on white, 16 bits are scaled.

What says nothing of its black and white, signed numbers and those of other ranges, is a BadSample.

Whatever is made on the way is made in strips, so that an image costs little more than itself and its RGB.
"""

from collections.abc import Iterator

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from ldm.data.errors import BadSample

WAY = "save it with 8 bits, or with 16 from black at 0 to white at 65535"
DEEP_MODES = ("I", "I;16", "I;16B", "I;16L")
BAND_PIXELS = 1 << 20
BITS, SAMPLE_FORMAT = 258, 339  # TIFF's tags
SIGNED = 2  # of TIFF's SampleFormat
SPREAD = {"L;2": 85, "L;4": 17}  # what Pillow multiplies a PNG's grey of fewer bits by


def rgb(image: Image.Image) -> Image.Image:
    """Decoded and of 8 bits, as it lies in the file. BadSample for fractions, and for signed and larger numbers."""
    decoded(image)
    if signed_bits(image) in (8, 16):
        raise BadSample("unusable picture", f"its numbers are signed, of which none is known to be white; {WAY}")
    if image.mode == "F":
        raise BadSample("unusable picture", f"its values are fractions, of which none is known to be white; {WAY}")
    if image.mode in DEEP_MODES:
        return _eight_bits(image).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    white = Image.new("RGB", image.size, "white")
    for top, band in _bands(image):
        band = band.convert("RGBA")
        white.paste(band, (0, top), mask=band)
    return white


def decoded(image: Image.Image) -> Image.Image:
    """Itself, decoded. The one grey that a PNG calls transparent is said in the numbers of its pixels, which Pillow has
    spread where the file has fewer than 8 bits; BadSample for a colour of 16 bits, of which Pillow keeps 8.
    """
    stored = next((tile.args for tile in getattr(image, "tile", ())), None)
    image.load()
    transparent = image.info.get("transparency") if image.format == "PNG" else None
    if transparent is not None and stored == "RGB;16B":
        raise BadSample("unusable picture", "one colour of 16 bits is called transparent, which is not read; use RGBA")
    if isinstance(transparent, int) and stored in SPREAD:
        image.info["transparency"] = transparent * SPREAD[stored]
    return image


def signed_bits(image: Image.Image) -> int:
    """How many bits a TIFF's numbers have if they are signed, which Pillow tells of no 8 bits; else 0."""
    if not isinstance(image, TiffImageFile) or SIGNED not in np.ravel(image.tag_v2.get(SAMPLE_FORMAT, 1)):
        return 0
    return int(np.max(image.tag_v2.get(BITS, 1)))


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey to the nearest of 8 bits by scale, and white where transparent; PIL's own conversion would clip."""
    grey = np.empty((image.height, image.width), np.uint8)
    for top, band in _bands(image):
        deep = np.asarray(band)
        if deep.min() < 0 or deep.max() > 65535:
            raise BadSample("unusable picture", f"its values go from {deep.min()} to {deep.max()}; {WAY}")
        deep = deep.astype(np.uint32)
        grey[top : top + band.height] = (deep + 128) // 257  # half way lies no whole number
        if "transparency" in image.info:
            grey[top : top + band.height][deep == image.info["transparency"]] = 255
    return Image.fromarray(grey)


def _bands(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """Strips of the image with their first row: intermediate arrays stay small, however large the image."""
    rows = max(1, BAND_PIXELS // image.width)
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))
