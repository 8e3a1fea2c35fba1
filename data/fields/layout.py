"""Objects and their boxes as numbers of tokens."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from ldm.data.drawn_boxes import draw_boxes
from ldm.data.errors import BadSample
from ldm.data.fields.field import Field
from ldm.data.members import entry, read_entries
from ldm.data.rasters import Picture
from ldm.data.transforms import View
from ldm.data.user_error import UserError


class Objects(NamedTuple):
    """What is read of one picture: class tokens [K], boxes [K, 4] in shares, and the resized image's size."""

    classes: np.ndarray
    boxes: np.ndarray
    size: tuple[int, int]
    num_left_out: int = 0  # objects of classes that `classes` maps to None


class Layout(Field):
    """Objects with boxes as token numbers, int64 [B, 3 max_objects + 2] (arXiv 2112.10752, section 4.3.1).

    The .json member lists them under `key` as ``{"category": 3, "box": [left, top, right, bottom]}``, in shares of the
    image as it is seen, perhaps with group, occluded, depiction or inside true. Of a picture that EXIF turns the json
    also has to have the `width` and `height` that the boxes were drawn on. Each becomes three tokens: its class
    (category + num_classes times the sum of those flags' 1, 2, 4, 8) and the places of its corners on a square grid of
    floor(sqrt(vocabulary)) a side; two last tokens say where the crop lies. The first max_objects are taken, in random
    order where the view is random; of them those without an area inside the crop are left out. `classes`: of each
    category of the shards the class, below num_classes, that stands for it, or None, which leaves its objects out
    (those of COCO for a model of OpenImages).
    """

    lies_on_picture = True
    yields = "int64 [B, N]"
    FLAGS = ("group", "occluded", "depiction", "inside")

    def __init__(
        self,
        num_classes: int,
        key: str = "objects",
        extension: str = "json",
        vocabulary: int = 8192,
        max_objects: int = 30,
        classes: list[int | None] | None = None,
    ):
        self.side = math.isqrt(vocabulary)
        if not 1 <= num_classes * 2 ** len(self.FLAGS) < vocabulary:
            raise UserError(f"num_classes={num_classes}: 16 times as many class tokens must fit below {vocabulary}")
        outside = [number for number in classes or [] if number is not None and not 0 <= number < num_classes]
        if outside:
            raise UserError(f"classes: {outside[0]} is no class below num_classes={num_classes}")
        self.num_classes = num_classes
        self.classes = classes
        self.key = key
        self.extension = extension
        self.none = vocabulary - 1
        self.max_objects = max_objects
        self.numbers = 3 * max_objects + 2, vocabulary

    def read(self, content: bytes, picture: Picture) -> Objects:
        """The objects of the model's classes."""
        entries = read_entries(content)
        objects = entry(entries, self.key, "missing objects")
        told = isinstance(objects, list) and all(isinstance(each, dict) for each in objects)
        if not told or not all({"category", "box"} <= each.keys() for each in objects):
            raise BadSample("broken objects", f"{self.key}: a list of objects is meant, each with category and box")
        try:
            tokens = [(self._class_token(found), _box(found["box"])) for found in objects]
            known = [(token, box) for token, box in tokens if token is not None]
            classes = np.array([token for token, _ in known], dtype=np.int64)
            boxes = np.array([box for _, box in known], dtype=np.float64).reshape(-1, 4)
        except (TypeError, ValueError, OverflowError) as error:
            raise BadSample("broken objects", f"{self.key}: {error}") from None
        if not ((boxes >= 0) & (boxes <= 1)).all() or (boxes[:, :2] > boxes[:, 2:]).any():
            raise BadSample("broken objects", f"{self.key}: a box is left, top, right, bottom in shares of the image")
        raster = entries.get("width"), entries.get("height")
        laid = picture.lay_boxes(boxes, raster) if len(boxes) else boxes
        return Objects(classes, laid, picture.size, len(tokens) - len(known))

    def unmeant(self, value: Objects) -> str | None:
        """A box without an area, more than are read, or none that is of the model's classes."""
        boxes = value.boxes
        if value.num_left_out and not len(boxes):
            return f"{self.key}: all {value.num_left_out} are of classes that data.fields.*.classes leaves out"
        for number, (left, top, right, bottom) in enumerate(boxes.tolist()):
            if left >= right or top >= bottom:
                place = f"{left:g}, {top:g}, {right:g}, {bottom:g}"
                return f"{self.key}: the box of number {number}, [{place}], has no area"
        if len(boxes) > self.max_objects:
            return f"{self.key}: {len(boxes)} of them, and the model reads {self.max_objects}"
        return None

    def drawing(self, value: Objects, names: Sequence[str]) -> Callable[[Image.Image], Image.Image]:
        """The boxes, each with its class by name, or by number where there is none; `names` are of the shards' own."""
        kinds = (value.classes % self.num_classes).tolist()
        own = kinds if self.classes is None else [self.classes.index(kind) for kind in kinds]
        words = [names[number] if number < len(names) else str(number) for number in own]
        return lambda picture: draw_boxes(picture, value.boxes, words, kinds)

    def _class_token(self, found: Mapping[str, Any]) -> int | None:
        """None for an object of a class that is left out."""
        category, count = found["category"], self.num_classes if self.classes is None else len(self.classes)
        if type(category) is not int or not 0 <= category < count:
            raise UserError(f"category {category!r} is not in 0..{count - 1}")
        flags = [found.get(name) or False for name in self.FLAGS]
        if not all(flag in (0, 1) for flag in flags):  # "false" would count as true
            raise UserError(f"{', '.join(self.FLAGS)} are true or false")
        category = category if self.classes is None else self.classes[category]
        if category is None:
            return None
        return category + self.num_classes * sum(2**place for place, flag in enumerate(flags) if flag)

    def collate(self, values: Sequence[Any], views: Sequence[View], image_size: int) -> torch.Tensor:
        """One row of tokens for each sample."""
        pairs = zip(values, views, strict=True)
        return torch.stack([
            self._tokens(value.classes, value.boxes, value.size, view, image_size) for value, view in pairs
        ])  # fmt: skip

    def _tokens(
        self, classes: np.ndarray, boxes: np.ndarray, size: tuple[int, int], view: View, image_size: int
    ) -> torch.Tensor:
        width, height = size
        left, top = view.corner(height, width, image_size)
        side = view.side(height, width, image_size)
        crop = np.array([left / width, top / height, (left + side) / width, (top + side) / height])
        classes, boxes = classes[: self.max_objects], boxes[: self.max_objects]
        seen = (np.minimum(boxes[:, 2:], crop[2:]) > np.maximum(boxes[:, :2], crop[:2])).all(1)
        order = np.random.Generator(np.random.Philox(int(view.choice * 2**53))).permutation(len(boxes))
        if view.choice == 0:
            order = np.arange(len(boxes))
        chosen = order[seen[order]]
        tokens = np.full((self.max_objects, 3), self.none)
        tokens[: len(chosen), 0] = classes[chosen]
        tokens[: len(chosen), 1:] = self._places(boxes[chosen], view.flip)
        return torch.from_numpy(np.append(tokens, self._places(crop[None], view.flip)))

    def _places(self, boxes: np.ndarray, flip: bool) -> np.ndarray:
        """Tokens [K, 2] of the top left and bottom right corners of boxes [K, 4], mirrored or not."""
        left, top, right, bottom = boxes.T
        if flip:
            left, right = 1 - right, 1 - left
        columns, rows = (np.stack(pair, 1) * (self.side - 1) for pair in ((left, right), (top, bottom)))
        return (np.rint(rows) * self.side + np.rint(columns)).astype(np.int64)


def _box(values: Any) -> list[float]:
    if len(values) != 4 or not all(type(value) in (int, float) for value in values):
        raise UserError(f"a box is four numbers, not {str(values)[:40]}")
    return values
