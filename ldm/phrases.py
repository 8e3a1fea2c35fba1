"""Paint-with-words as sample.py is asked for it: phrases=, what each colour of the picture paint= stands for."""

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from PIL import Image, ImageColor, ImageDraw, ImageFont
from scipy import ndimage
from torch import Tensor

from ldm.conditioners.paint import Paint
from ldm.conditioners.spans import occurrences
from ldm.config.keys import bare
from ldm.data.drawn_boxes import FADED
from ldm.drawer import Drawer
from ldm.errors import UserError
from ldm.frames import Frame
from ldm.given_files import content_of, read_picture_file

MOST = 64  # phrases
STRONGEST = 100.0
KEYS = ("colour", "strength", "outside", "blur")
WAY = """write phrases='{"red heart": "#ff0000", "key": "#00ff00"}', in single quotes, or phrases=FILE.json"""


@dataclass(frozen=True)
class Stroke:
    """How a phrase is painted: an RGB colour of the sheet, how strongly where that is and elsewhere (below 0: kept
    out), blurred by so many px.
    """

    colour: tuple[int, int, int]
    strength: float = 1.0
    outside: float = 0.0
    blur: float = 0.0

    def over(self, mask: Tensor) -> Tensor:
        """The strength of each place, of how much of it has the colour, from 0 to 1."""
        return self.outside + (self.strength - self.outside) * mask

    def within(self, region: Tensor) -> Tensor:
        """Where the colour is, bool, of the strength of each place."""
        share = (region - self.outside).abs()
        return share > 0.5 * share.max()


def plain_phrases(value: str | Mapping[str, Any]) -> dict[str, Any]:
    """The mapping that phrases= is, is written as, or names the file of. Raises UserError for what is none."""
    if isinstance(value, str):
        where, text = "phrases", value
        if not value.lstrip().startswith("{"):
            where = f"phrases={value[:200]}"
            text = content_of("phrases", os.path.expanduser(value)).decode("utf-8-sig", "replace")
        value = _parsed(text, where)
    if not isinstance(value, Mapping) or not value or not all(isinstance(key, str) and key.strip() for key in value):
        raise UserError(f"phrases: not a colour for each of some phrases; {WAY}")
    if len(value) > MOST:
        raise UserError(f"phrases: {len(value)} of them; at most {MOST}")
    return dict(value)


def _parsed(text: str, where: str) -> Any:
    """JSON, or the same without quotes around phrases, which is YAML."""
    try:
        return json.loads(text, object_pairs_hook=_once)
    except UserError:
        raise
    except (ValueError, RecursionError):
        pass
    try:
        node = yaml.compose(text, yaml.SafeLoader)
        if isinstance(node, yaml.MappingNode):
            _once([(key.value, None) for key, _ in node.value])
        return yaml.safe_load(text)
    except UserError:
        raise
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{where}: cannot be read as colours of phrases; {WAY}") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A mapping of its pairs. Raises UserError for a key that is there twice, of which only the last would count."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for place, (key, _) in enumerate(pairs) if key in dict(pairs[:place]))
        raise UserError(f"phrases: {twice[:80]!r} is there twice, of which the last alone would count")
    return found


def read_phrases(value: str | Mapping[str, Any]) -> dict[str, Stroke]:
    """{phrase: how it is painted}. Raises UserError, naming the phrase, for what is no colour, or is out of range."""
    return {phrase: _stroke(phrase, own) for phrase, own in plain_phrases(value).items()}


def _stroke(phrase: str, value: Any) -> Stroke:
    own = value if isinstance(value, dict) else {"colour": value}
    where = f"phrases: {phrase[:80]!r}"
    unknown = [str(key)[:80] for key in own if key not in KEYS]
    if unknown:
        raise UserError(f"{where}: no such key {unknown[0]}; there are {', '.join(KEYS)}")
    colour = own.get("colour")
    try:
        found = ImageColor.getrgb(str(colour))[:3] if isinstance(colour, str) else None
    except ValueError:
        found = None
    if found is None:
        raise UserError(f"{where}: {str(colour)[:80]!r} is no colour, such as '#ff0000' or 'red'; {WAY}")
    numbers = {key: own.get(key, default) for key, default in (("strength", 1.0), ("outside", 0.0), ("blur", 0.0))}
    for key, number in numbers.items():
        fits = isinstance(number, int | float) and not isinstance(number, bool) and math.isfinite(number)
        if not fits or abs(number) > (1e4 if key == "blur" else STRONGEST) or (key == "blur" and number < 0):
            limits = "0 px or more" if key == "blur" else f"-{STRONGEST:g} to {STRONGEST:g}"
            raise UserError(f"{where}: {key}={str(number)[:80]}: must be {limits}")
    return Stroke(found, **{key: float(number) for key, number in numbers.items()})


def check_paint(tree: Mapping[str, Any], words: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """What can be said of paint= and phrases= without a model, for `rows` with prompts; `words` made the `tree`.

    Raises UserError for one without the other, for a phrase that is not in a prompt, a colour that is not in the
    picture, OSError for a file that is not there.
    """
    if tree["paint"] is None:
        for key, given in (("phrases", tree["phrases"] is not None), ("painting", _asked("painting", words))):
            if given:
                raise UserError(f"{key}: says how the picture paint=FILE is meant; give that too, or leave {key} out")
        return
    if tree["phrases"] is None:
        raise UserError(f"paint={tree['paint']}: needs phrases=, which phrase each colour is; {WAY}")
    if tree["painting"] is None:
        raise UserError("painting=null: paint= weighs by one of them; leave it out for that of conf/sample.yaml")
    strokes = read_phrases(tree["phrases"])
    _masks(tree["paint"], strokes)
    for text in (row["caption"] for row in rows if "caption" in row and "caption" not in tree["given"]):
        for phrase in strokes:
            if not occurrences(phrase, text):
                raise UserError(f"phrases: {phrase!r} is not in the prompt, {text[:200]!r}")


def _asked(group: str, words: Sequence[str]) -> bool:
    return any(bare(word).partition(".")[0] == group for word in words)


def read_paint(tree: Mapping[str, Any], drawer: Drawer, frame: Frame) -> Paint | None:
    """What is painted, on images as they are drawn in `frame`; None where nothing is. Raises as `check_paint`, and
    UserError for a picture of another shape than the images, or a model whose latents are no maps.
    """
    if tree["paint"] is None:
        return None
    if drawer.first_stage.spec.kind != "grid":
        raise UserError(f"paint: the latents of {drawer.name} are no maps, so that no place of them is painted")
    strokes = read_phrases(tree["phrases"])
    masks = _masks(tree["paint"], strokes)
    (height, width), (own_height, own_width) = frame.size, next(iter(masks.values())).shape
    if abs(own_height * width - own_width * height) > max(height, width, own_height, own_width):
        raise UserError(
            f"paint={tree['paint']}: has {own_width} x {own_height} px, and the images will have {width} x {height}; "
            "paint on a picture of their shape, or say height= and width="
        )
    regions = {phrase: _region(masks[phrase], stroke, frame.size) for phrase, stroke in strokes.items()}
    return Paint({phrase: frame.filled(region, 1) for phrase, region in regions.items()})


def _region(mask: np.ndarray, stroke: Stroke, size: tuple[int, int]) -> Tensor:
    """A mask as strengths [H, W] on an image of `size`."""
    region = F.interpolate(torch.from_numpy(mask).float()[None, None], size, mode="bilinear", antialias=True)[0, 0]
    if stroke.blur:
        region = torch.from_numpy(ndimage.gaussian_filter(region.numpy(), stroke.blur, mode="nearest"))
    return stroke.over(region)


def _masks(path: str, strokes: Mapping[str, Stroke]) -> dict[str, np.ndarray]:
    """Where a picture has exactly the colour of each phrase, bool [H, W]. Raises UserError for a colour it has not."""
    pixels = read_picture_file("paint", path)
    found = {phrase: (pixels == stroke.colour).all(-1) for phrase, stroke in strokes.items()}
    for phrase, mask in found.items():
        if not mask.any():
            colour = strokes[phrase].colour
            nearest = pixels.reshape(-1, 3)[np.abs(pixels.astype(int) - colour).sum(-1).argmin()]
            raise UserError(
                f"phrases: {phrase!r} is {_hex(colour)}, and paint={path} has no such pixel, the nearest is "
                f"{_hex(nearest)}; paint without soft edges, in a file without losses such as PNG"
            )
    return found


def _hex(colour: Sequence[int]) -> str:
    return "#" + "".join(f"{int(value):02x}" for value in colour)


def drawing_of(tree: Mapping[str, Any], paint: Paint, frame: Frame) -> Callable[[Image.Image], Image.Image]:
    """What draws on an image the outlines of what is painted, with its phrases, in the colours of the sheet."""
    strokes = read_phrases(tree["phrases"])
    regions = {phrase: frame.cut(region) for phrase, region in paint.regions.items()}
    return lambda picture: outlined(
        picture,
        {phrase: (strokes[phrase].within(region), strokes[phrase]) for phrase, region in regions.items()},
    )


def outlined(picture: Image.Image, regions: Mapping[str, tuple[Tensor, Stroke]], faded: bool = True) -> Image.Image:
    """A copy of an RGB picture, perhaps `faded`, with the outlines of masks [H, W] and what they are; what is kept out
    begins with "not".
    """
    drawn = Image.blend(picture, Image.new("RGB", picture.size, "white"), FADED if faded else 0.0)
    pixels, labels = np.array(drawn), []
    thick = max(1, min(picture.size) // 96)
    for phrase, (mask, stroke) in regions.items():
        small = Image.fromarray(mask.numpy().astype(np.uint8) * 255)
        here = np.asarray(small.resize(picture.size, Image.Resampling.NEAREST)) > 0
        pixels[here & ~ndimage.binary_erosion(here, iterations=thick, border_value=0)] = stroke.colour
        if here.any():
            rows, columns = (np.flatnonzero(here.any(axis)) for axis in (1, 0))
            labels.append(
                (columns[0] + thick + 1, rows[0] + thick, phrase if stroke.strength >= 0 else f"not {phrase}")
            )
    drawn = Image.fromarray(pixels)
    pen, font = ImageDraw.Draw(drawn), ImageFont.load_default(size=max(8, min(picture.size) // 16))
    for left, top, text in labels:
        pen.text((left, top), text, font=font, fill="black", stroke_width=1, stroke_fill="white")
    return drawn
