"""Images whose pixels are numbers: maps of classes, as they are stored, and masks, by what they mark.

Pillow's conversions to grey would scale the numbers of small depths, weigh colours and cut 16 bits. Nothing is
converted here: what cannot be read as it is stored, or could be read in two ways, is a BadSample that says its mode.
"""

from typing import NamedTuple

import numpy as np
from PIL import Image

from ldm.data.colours import BITS, DEEP_MODES, decoded, signed_bits
from ldm.data.decoding import named_failure, open_image
from ldm.data.errors import BadSample
from ldm.data.rasters import said_orientation

LOSSLESS = ("PNG", "TIFF", "BMP", "GIF")
LOSSY_TIFF = ("jpeg", "tiff_jpeg", "webp")
COLOURED = ("RGB", "RGBA", "LA")
WHITE_IS_ZERO = 0  # of TIFF's PhotometricInterpretation (white is zero): Pillow inverts such values
PHOTOMETRIC = 262  # TIFF's tag


class LabelImage(NamedTuple):
    """Values [H, W], as their file stores them, and the orientation in its metadata, or None."""

    values: np.ndarray
    orientation: int | None


def decode_labels(content: bytes) -> LabelImage:
    """Class numbers, uint8 or, where they are of more than 8 bits, int32."""
    image, orientation, bits = _load(content)
    if not _is_lossless(image, content):
        raise BadSample("unusable map", f"a map of classes in {image.format}, which changes numbers; PNG keeps them")
    if image.format == "TIFF" and image.tag_v2.get(PHOTOMETRIC) == WHITE_IS_ZERO:  # type: ignore[attr-defined]  # a TIFF
        raise BadSample("unusable map", "a map of classes in a TIFF whose white is zero: its numbers are turned round")
    if image.mode in COLOURED:
        values = _one_channel(image, bits)
    elif image.mode == "P":
        values = np.array(image)
    else:
        values = _numbers(image, bits)
    if values is None or values.min(initial=0) < 0:
        raise BadSample("unusable map", f"a map of classes of the mode {_mode(image, bits)}: it is read from grey or "
                        "palette images only, whose pixels are class numbers")  # fmt: skip
    return LabelImage(values, orientation)


def decode_mask(content: bytes) -> LabelImage:
    """A mask, uint8 of 0 and 1: what is white, 1 of 0 and 1, opaque, or of the one colour there is beside black."""
    image, orientation, bits = _load(content)
    if image.mode in (*COLOURED, "P") or (image.has_transparency_data and image.mode in ("1", "L", "I;16")):
        if bits > 8:
            raise BadSample("unusable mask", f"a mask of the mode {_mode(image, bits)}: save it as grey")
        marked = _marked_by_colour(image)
    else:
        numbers = _numbers(image, bits)
        if numbers is None:
            raise BadSample("unusable mask", f"a mask of the mode {_mode(image, bits)}: save it as grey")
        marked = _marked(numbers, (1 << min(bits, 16)) - 1)
    return LabelImage(marked.astype(np.uint8), orientation)


def decode_opacity(content: bytes) -> LabelImage:
    """What an image shows and what is cut out of it, uint8: 1 where it is at least half opaque."""
    image, orientation, _ = _load(content)
    if "A" not in image.getbands() and not image.has_transparency_data:
        raise BadSample("no transparency", f"an image of the mode {image.mode}: nothing of it is transparent")
    if image.mode == "I;16":  # of which Pillow compares 8 bits
        return LabelImage((np.asarray(image) != image.info["transparency"]).astype(np.uint8), orientation)
    alpha = np.asarray(image.convert("RGBA").getchannel("A"))
    return LabelImage((alpha > 127).astype(np.uint8), orientation)


def _load(content: bytes) -> tuple[Image.Image, int | None, int]:
    """The image, decoded; the orientation it says; the bits of one channel as stored."""
    image = open_image(content)
    bits = 1 if image.mode == "1" else 8
    if image.format == "PNG":
        bits = content[24]
    elif image.format == "TIFF":
        with named_failure():
            bits = int(max(image.tag_v2.get(BITS, (1,))))  # type: ignore[attr-defined]  # a TIFF
    elif image.mode in DEEP_MODES:
        bits = 16
    turned = image.format == "TIFF" and (said_orientation(image) or 1) != 1  # a TIFF is turned as it is loaded
    with named_failure():
        decoded(image)
        if signed_bits(image) == 8 and np.asarray(image).max(initial=0) > 127:  # unsigned, by Pillow
            raise BadSample("unusable picture", "a TIFF of signed numbers, some of which are negative")
    return image, 1 if turned else said_orientation(image), bits


def _is_lossless(image: Image.Image, content: bytes) -> bool:
    if image.format == "TIFF":
        return image.info.get("compression") not in LOSSY_TIFF
    return image.format in LOSSLESS or (image.format == "WEBP" and content[12:16] == b"VP8L")


def _mode(image: Image.Image, bits: int) -> str:
    return f"{image.mode} with {bits} bits a channel" if bits > 8 else image.mode


def _numbers(image: Image.Image, bits: int) -> np.ndarray | None:
    """The numbers of a grey image as they are stored; None of another image."""
    if image.mode == "1":
        return np.array(image).astype(np.uint8)
    if image.mode == "L":
        return np.array(image) // (255 // ((1 << bits) - 1)) if bits < 8 else np.array(image)  # it spreads 0..3 to 255
    return np.array(image).astype(np.int32) if image.mode in DEEP_MODES else None


def _one_channel(image: Image.Image, bits: int) -> np.ndarray | None:
    """The numbers of a colour image that is grey all over and opaque; None of another one."""
    channels = np.array(image)
    alpha = channels[..., -1] if image.mode in ("RGBA", "LA") else None
    colours = channels if alpha is None else channels[..., :-1]
    is_grey = (colours == colours[..., :1]).all()
    return colours[..., 0].copy() if bits <= 8 and is_grey and (alpha is None or (alpha == 255).all()) else None


# -- what a mask marks -----------------------------------------------------------------------------------------------


def _marked(values: np.ndarray, white: int) -> np.ndarray:
    """What is 1 of 0 and 1, else the lighter half of black to white; edges may be grey."""
    top = int(values.max(initial=0))
    if top <= 1:
        return values == 1
    white = 255 if top <= 255 < white else white  # 8 bits kept in 16
    if top * 2 <= white or (white < 255 and top != white):
        raise BadSample(
            "unusable mask", f"a mask of numbers up to {top}, of {white}: expected 0 and 1, or black and white"
        )
    dark = (values > 0) & (values <= white // 8)
    if dark.any() and not ((values > white // 8) & (values < white)).any():
        raise BadSample("unusable mask", f"a mask of a few small numbers and {white}, as maps of classes have them")
    return values > white // 2


def _marked_by_colour(image: Image.Image) -> np.ndarray:
    """What colours, opacity and the numbers of a palette mark, where they agree."""
    readings, numbers = [], np.array(image) if image.mode == "P" else None
    if image.mode not in COLOURED or (image.mode == "RGB" and image.has_transparency_data):
        image = image.convert("RGBA")
    colours = [np.asarray(image.getchannel(name)) for name in image.getbands()]
    alpha = colours.pop() if len(colours) in (2, 4) else None
    opaque = alpha is None or bool((alpha == 255).all())
    is_grey = all(np.array_equal(colour, colours[0]) for colour in colours[1:])
    if opaque or (is_grey and np.ptp(colours[0]) > 0):
        readings.append(_marked(colours[0], 255) if is_grey else _of_one_colour(colours))
    if alpha is not None and not opaque:
        readings.append(_marked(alpha, 255))
    if numbers is not None and not is_grey and numbers.max(initial=0) <= 1:
        readings.append(numbers == 1)
    found = [reading for reading in readings if reading is not None]
    if not found:
        raise BadSample("unusable mask", f"a mask of the mode {image.mode} with several colours: save it as grey")
    if any((reading != found[0]).any() for reading in found[1:]):
        raise BadSample("unusable mask", f"a mask of the mode {image.mode} whose colours, opacity or numbers disagree")
    return found[0]


def _of_one_colour(colours: list[np.ndarray]) -> np.ndarray | None:
    """What is not black, where that is of one colour."""
    lit = (colours[0] | colours[1] | colours[2]) > 0
    return lit if all(np.ptp(colour[lit]) == 0 for colour in colours if lit.any()) else None
