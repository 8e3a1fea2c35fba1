"""Canvases: some built-in emoji, on a plain or textured ground, apart from each other, and the exact truth about them.

Where each lies is known (boxes, a map of their groups, a map of each), and so is what it is called (a caption that has
their names). Canvas number n of a split is the same whatever the others are; emoji of one split are in no other.
"""

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ldm.data.counter_random import uniform
from ldm.data.making import backgrounds
from ldm.data.making.cutouts import SPLITS, Emoji, cutout, emoji, few_emoji
from ldm.data.user_error import UserError

SIDES = (32, 512)  # px of a canvas
MOST = 30  # objects
GROUPS = 9  # of emoji
GAP = 1  # px between objects
TRIES = 40  # places tried for an object before all are made smaller, by
SHRINK = 0.9
BLOCK = 256  # numbers drawn at once


@dataclass(frozen=True)
class CanvasSettings:
    """What canvases are made of. `textured` is the share of them that have a texture for a ground.

    `size` is (height, width), px; `objects` are the fewest and the most, `sides` the longer side of one as a share of
    the canvas's shorter one: upper bounds, for all of a canvas become smaller until they fit. `names` is how many names
    of each of the nine groups are drawn, in each of their styles; None is all.
    """

    split: str = "train"
    size: tuple[int, int] = (64, 64)
    objects: tuple[int, int] = (2, 4)
    sides: tuple[float, float] = (0.3, 0.5)
    textured: float = 0.5
    seed: int = 0
    names: int | None = None

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise UserError(f"split={self.split}: canvases are of {' or '.join(SPLITS)}")
        if not all(SIDES[0] <= side <= SIDES[1] for side in self.size):
            said = "x".join(map(str, self.size))
            raise UserError(f"size={said}: height and width of a canvas are {SIDES[0]} to {SIDES[1]} px")
        if not 1 <= self.objects[0] <= self.objects[1] <= MOST:
            raise UserError(f"objects={list(self.objects)}: the fewest and the most, 1 to {MOST}")
        if not 0 < self.sides[0] <= self.sides[1] <= 1:
            raise UserError(f"sides={list(self.sides)}: two shares of the shorter side, from the smaller, up to 1")
        if not 0 <= self.textured <= 1:
            raise UserError(f"textured={self.textured}: a share of the canvases, 0 to 1")
        if not 0 <= self.seed < 1 << 32:
            raise UserError(f"seed={self.seed}: must be between 0 and {(1 << 32) - 1}")
        if self.names is not None and self.objects[1] > GROUPS * self.names:
            raise UserError(f"names={self.names} of each of {GROUPS} groups: too few for {self.objects[1]} objects")


class Canvas(NamedTuple):
    """One canvas: image uint8 [H, W, 3]; `groups` uint8 [H, W], 0 the ground and 1 to 9 the group's number and one;
    `instances` uint8 [H, W], 0 the ground and k the k-th of `objects`.

    An object: `category` (its group's number, 0 to 8) and `box` (left, top, right, bottom in shares), as
    data.fields.Layout reads them, `class` (the group's name), `phrase` (its name) and `span` (where that begins and
    ends in the caption), `emoji` (its key among the built-in ones).
    """

    image: np.ndarray
    groups: np.ndarray
    instances: np.ndarray
    objects: list[dict[str, Any]]
    caption: str


def canvas(settings: CanvasSettings, number: int) -> Canvas:
    """The canvas of that number, from 0 on."""
    return _composed(settings, number, _choose)


def canvas_of(settings: CanvasSettings, number: int, chosen: Sequence[Emoji]) -> Canvas:
    """The canvas of that number with these emoji, in this order, all of which `cutout` cuts out."""
    cutouts = [(one, pixels) for one in chosen if (pixels := cutout(one)) is not None]
    assert len(cutouts) == len(chosen)
    return _composed(settings, number, lambda *_: cutouts)


def _composed(
    settings: CanvasSettings, number: int, choose: Callable[..., Sequence[tuple[Emoji, np.ndarray]]]
) -> Canvas:
    draw = _Draws(settings.seed, settings.split, number)
    height, width = settings.size
    textured = draw(1)[0] < settings.textured
    texture = backgrounds.TEXTURES[int(draw(1)[0] * len(backgrounds.TEXTURES))]
    image = np.array((texture if textured else backgrounds.plain)(draw, height, width))
    chosen, cutouts = zip(*choose(settings, draw), strict=True)
    lo, hi = settings.sides
    shares = lo + (hi - lo) * draw(len(chosen))
    layers = _place(cutouts, shares * min(height, width), (height, width), draw)
    groups, instances = np.zeros((2, height, width), np.uint8)
    boxes = []
    for number_here, (one, (top, left, pixels)) in enumerate(zip(chosen, layers, strict=True), 1):
        part = np.s_[top : top + pixels.shape[0], left : left + pixels.shape[1]]
        alpha = pixels[..., 3:] / 255
        image[part] = alpha * pixels[..., :3] + (1 - alpha) * image[part]
        inside = pixels[..., 3] >= min(128, pixels[..., 3].max())
        groups[part][inside] = one.label + 1
        instances[part][inside] = number_here
        rows, columns = (np.flatnonzero(inside.any(axis)) for axis in (1, 0))
        edges = (left + columns[0], top + rows[0], left + columns[-1] + 1, top + rows[-1] + 1)
        boxes.append([round(float(edge / side), 6) for edge, side in zip(edges, (width, height) * 2, strict=True)])
    caption, spans = describe([one.caption for one in chosen], boxes)
    objects = [
        {"category": one.label, "box": box, "class": one.group, "phrase": one.caption, "span": span, "emoji": one.key}
        for one, box, span in zip(chosen, boxes, spans, strict=True)
    ]
    return Canvas(np.rint(np.clip(image, 0, 255)).astype(np.uint8), groups, instances, objects, caption)


class _Draws:
    """Uniform numbers in [0, 1), one after the other, addressed by (seed, split, number)."""

    def __init__(self, seed: int, split: str, number: int):
        self.address = seed, split, number
        self.block = 0
        self.left = np.empty(0)

    def __call__(self, count: int) -> np.ndarray:
        seed, split, number = self.address
        while len(self.left) < count:
            more = uniform(seed, f"canvas of {split}, {self.block}", np.array([number]), BLOCK)[0]
            self.left = np.concatenate([self.left, more])
            self.block += 1
        taken, self.left = self.left[:count], self.left[count:]
        return taken


def _choose(settings: CanvasSettings, draw: _Draws) -> list[tuple[Emoji, np.ndarray]]:
    """Emoji of different names, cut out: each time first a group, all being equally frequent, and then one of it."""
    fewest, most = settings.objects
    every = emoji(settings.split) if settings.names is None else few_emoji(settings.split, settings.names)
    by_group = list(every.values())
    chosen: dict[str, tuple[Emoji, np.ndarray]] = {}
    count = fewest + int(draw(1)[0] * (most - fewest + 1))
    while len(chosen) < count:
        which, place = draw(2)
        group = by_group[int(which * len(by_group))]
        one = group[int(place * len(group))]
        if (pixels := cutout(one)) is not None:
            chosen.setdefault(one.caption, (one, pixels))
    return list(chosen.values())


def _place(
    cutouts: Sequence[np.ndarray], sides: np.ndarray, size: tuple[int, int], draw: _Draws
) -> list[tuple[int, int, np.ndarray]]:
    """(top, left, RGBA [h, w, 4]) of each, its longer side of so many px or smaller, none within GAP of another."""
    while True:
        shapes = [_fitted(pixels, side) for pixels, side in zip(cutouts, sides, strict=True)]
        corners = _apart(shapes, size, draw)
        if corners is not None:
            resized = (
                np.asarray(Image.fromarray(pixels, "RGBA").resize(shape[::-1], Image.Resampling.LANCZOS))
                for pixels, shape in zip(cutouts, shapes, strict=True)
            )
            return [(top, left, pixels) for (top, left), pixels in zip(corners, resized, strict=True)]
        sides = sides * SHRINK


def _fitted(pixels: np.ndarray, side: float) -> tuple[int, int]:
    """(height, width) with the longer side of that many px."""
    height, width = pixels.shape[:2]
    scale = side / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def _apart(shapes: Sequence[tuple[int, int]], size: tuple[int, int], draw: _Draws) -> list[tuple[int, int]] | None:
    """(top, left) of each where no two meet; None if no place was found for one."""
    taken: list[tuple[int, int, int, int]] = []
    for height, width in shapes:
        room = size[0] - height + 1, size[1] - width + 1
        for row, column in draw(2 * TRIES).reshape(-1, 2) if min(room) > 0 else ():
            top, left = int(row * room[0]), int(column * room[1])
            box = top, left, top + height, left + width
            if not any(_meet(box, other) for other in taken):
                taken.append(box)
                break
        else:
            return None
    return [box[:2] for box in taken]


def _meet(one: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> bool:
    return all(one[i] < other[i + 2] + GAP and other[i] < one[i + 2] + GAP for i in (0, 1))


def describe(names: Sequence[str], boxes: Sequence[Sequence[float]]) -> tuple[str, list[list[int]]]:
    """A caption of two objects after two, "a red heart above a key, an apple left of a cup", and where each name lies.

    The spans are [start, end] in characters of the caption.
    """
    text, spans = "", []
    for place, (name, box) in enumerate(zip(names, boxes, strict=True)):
        if place:
            text += f" {relation(boxes[place - 1], box)} " if place % 2 else ", "
        text += _article(name)
        spans.append([len(text), len(text) + len(name)])
        text += name
    return text, spans


def _article(name: str) -> str:
    if name.endswith("s") and not name.endswith(("ss", "us", "is")):
        return ""  # chopsticks
    return "an " if name[0] in "aeiou" else "a "


def relation(one: Sequence[float], other: Sequence[float]) -> str:
    """Where the one box lies, seen from the other, by their middles: above, below, left of or right of."""
    across, down = (one[i] + one[i + 2] - other[i] - other[i + 2] for i in (0, 1))
    if abs(down) >= abs(across):
        return "above" if down < 0 else "below"
    return "left of" if across < 0 else "right of"


def members(made: Canvas) -> dict[str, bytes]:
    """The members of a sample: png, json, segmentation.png (groups), instances.png, mask.png (white: an object).

    The json has caption, objects, width and height.
    """
    height, width = made.groups.shape
    facts = {"caption": made.caption, "objects": made.objects, "width": width, "height": height}
    images = {
        "png": made.image,
        "segmentation.png": made.groups,
        "instances.png": made.instances,
        "mask.png": np.where(made.groups > 0, np.uint8(255), np.uint8(0)),
    }
    found = {"json": json.dumps(facts, ensure_ascii=False).encode()}
    for extension, pixels in images.items():
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        found[extension] = file.getvalue()
    return found
