"""What a sample carries beside its image: each field reads a member of the shard and becomes one key of the batch.

A field has two halves: `read` decodes (the result may be kept in memory), `collate` applies the views and stacks.
"""

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from data.errors import BadSample
from data.label_images import decode_labels, decode_mask
from data.members import entry, is_unicode, read_entries, read_entry, read_floats, read_text, says_something
from data.rasters import Picture
from data.transforms import View
from data.user_error import UserError


class Field(ABC):
    """One key of the batch. `extension` is the member it needs, `yields` says what the batch gets.

    `lies_on_picture` says that reading it needs to know how its picture lies; the others are given no Picture.
    """

    extension: str
    yields: str
    lies_on_picture = False

    @abstractmethod
    def read(self, content: bytes, picture: Picture | None) -> Any:
        """Decode the member, turned and resized with its picture. BadSample if it cannot be used."""

    @abstractmethod
    def collate(self, values: Sequence[Any], views: Sequence[View], image_size: int) -> Any:
        """The batch's value from the samples' own."""

    def num_choices(self, value: Any) -> int:
        """How many different values `collate` makes of this one, by the view's choice."""
        return 1


PLACE = re.compile(r"\{(\w+)\}")  # of an entry of the json, in a suffix


class Caption(Field):
    """Text, list[str]: a key of the .json member, or a whole text member (`extension=txt`, `key=null`).

    A list under the key counts as alternatives; one of them, one of `prefixes` and one of `suffixes` are drawn for each
    sample number, where nothing is drawn (validation) the first. In a suffix `{style}` is the json's entry "style".
    """

    yields = "list[str]"

    def __init__(
        self,
        key: str | None = "caption",
        extension: str = "json",
        prefixes: Sequence[str] = ("",),
        suffixes: Sequence[str] = ("",),
        max_chars: int = 2000,
    ):
        for name, texts in (("prefixes", prefixes), ("suffixes", suffixes)):
            if not texts:
                raise UserError(f"{name} must hold at least one text; '' means none")
        if key is None and any(PLACE.search(suffix) for suffix in suffixes):
            raise UserError("suffixes with {...} name entries of a json: captions that are whole members have none")
        self.key = key
        self.extension = extension
        self.prefixes = tuple(prefixes)
        self.suffixes = tuple(suffixes)
        self.max_chars = max_chars

    def read(self, content: bytes, picture: Picture | None) -> tuple[str, ...]:
        """The alternatives, each without surrounding white space and cut at `max_chars`, with every suffix."""
        if self.key is None:
            return self._suffixed(self._texts(read_text(content), None), {})
        entries = read_entries(content)
        return self._suffixed(self._entry(entries, self.key), entries)

    def _suffixed(self, texts: Sequence[str], entries: Mapping[str, Any]) -> tuple[str, ...]:
        suffixes = [PLACE.sub(lambda place: self._entry(entries, place[1])[0], suffix) for suffix in self.suffixes]
        return tuple(text + suffix for text in texts for suffix in suffixes)

    def _entry(self, entries: Mapping[str, Any], key: str) -> tuple[str, ...]:
        return self._texts(entry(entries, key, "missing caption"), key)

    def _texts(self, value: Any, key: str | None) -> tuple[str, ...]:
        texts = value if isinstance(value, list) else [value]
        if not all(isinstance(text, str) for text in texts):
            other = next(text for text in texts if not isinstance(text, str))
            raise BadSample("missing caption", f"{key!r} is {str(other)[:40]}, which is not text; write it in quotes")
        if not all(is_unicode(text) for text in texts):
            raise BadSample("not utf-8", "the caption holds half a surrogate pair")
        if any("\0" in text for text in texts):
            raise BadSample("not utf-8", "the caption holds zero bytes")
        kept = tuple(text.strip()[: self.max_chars] for text in texts if says_something(text))
        if not kept:
            raise BadSample("missing caption", "the caption is empty")
        return kept

    def collate(self, values: Sequence[tuple[str, ...]], views: Sequence[View], image_size: int) -> list[str]:
        """One text for each sample."""
        texts = []
        for alternatives, view in zip(values, views, strict=True):
            which, prefix = divmod(view.choose(len(alternatives) * len(self.prefixes)), len(self.prefixes))
            texts.append(self.prefixes[prefix] + alternatives[which])
        return texts

    def num_choices(self, value: tuple[str, ...]) -> int:
        """Every alternative after every prefix."""
        return len(value) * len(self.prefixes)


class Label(Field):
    """A class number, int64 [B]: a key of the .json member, or a whole member (`extension=cls`, `key=null`)."""

    yields = "int64 [B]"

    def __init__(self, key: str | None = "label", extension: str = "json"):
        self.key = key
        self.extension = extension

    def read(self, content: bytes, picture: Picture | None) -> int:
        """A non-negative integer."""
        value = read_entry(content, self.key, "missing label") if self.key is not None else read_text(content).strip()
        if self.key is None and value.isascii() and value.isdigit() and len(value) <= 10:
            value = int(value)
        if type(value) is not int or not 0 <= value < 1 << 31:
            raise BadSample("missing label", f"{str(value)[:40]!r} is not a class number")
        return value

    def collate(self, values: Sequence[int], views: Sequence[View], image_size: int) -> torch.Tensor:
        """Stacked; views do not change a class."""
        return torch.tensor(values, dtype=torch.int64)


class Mask(Field):
    """A foreground mask, float32 [B, 1, H, W] of 0 and 1, cut from its image member like the image itself.

    The foreground is white, 1 where there are only 0 and 1, opaque, or the one colour beside black.
    """

    lies_on_picture = True
    yields = "float32 [B, 1, H, W]"

    def __init__(self, extension: str = "mask.png"):
        self.extension = extension

    def read(self, content: bytes, picture: Picture) -> np.ndarray:
        """uint8 [H, W] of 0 and 1, resized with the nearest pixel."""
        values, orientation = decode_mask(content)
        return picture.lay(values, orientation, "mask")

    def collate(self, values: Sequence[np.ndarray], views: Sequence[View], image_size: int) -> torch.Tensor:
        """Cropped and flipped with the image."""
        windows = [view.crop(value, image_size) for value, view in zip(values, views, strict=True)]
        return torch.from_numpy(np.stack(windows)).float()[:, None]


class SemanticMap(Field):
    """Class numbers of the pixels, int64 [B, H, W], as a grey or palette image has them, cut like the image itself."""

    lies_on_picture = True
    yields = "int64 [B, H, W]"

    def __init__(self, extension: str = "segmentation.png"):
        self.extension = extension

    def read(self, content: bytes, picture: Picture) -> np.ndarray:
        """uint8 or int32 [H, W], resized with the nearest pixel."""
        values, orientation = decode_labels(content)
        return picture.lay(values, orientation, "map of classes")

    def collate(self, values: Sequence[np.ndarray], views: Sequence[View], image_size: int) -> torch.Tensor:
        """Cropped and flipped with the image."""
        windows = [view.crop(value, image_size) for value, view in zip(values, views, strict=True)]
        return torch.from_numpy(np.stack(windows)).long()


class Embeddings(Field):
    """Precomputed tokens, float32 [B, N, D], from an .npy member [num_tokens, D]; fewer are filled up with zeros."""

    yields = "float32 [B, N, D]"

    def __init__(self, num_tokens: int, extension: str = "npy"):
        self.num_tokens = num_tokens
        self.extension = extension

    def read(self, content: bytes, picture: Picture | None) -> np.ndarray:
        """float32 [num_tokens, D]."""
        array = read_floats(content)
        with np.errstate(over="ignore"):
            array = array.astype(np.float32)
        if not np.isfinite(array).all():
            raise BadSample("broken array", "not finite, or too large for 32 bits")
        if len(array) > self.num_tokens:
            raise BadSample("broken array", f"{len(array)} tokens, at most {self.num_tokens} are taken")
        return np.pad(array, ((0, self.num_tokens - len(array)), (0, 0)))

    def collate(self, values: Sequence[np.ndarray], views: Sequence[View], image_size: int) -> torch.Tensor:
        """Stacked; views do not change an embedding."""
        widths = sorted({value.shape[1] for value in values})
        if len(widths) > 1:
            raise UserError(f"embeddings (.{self.extension}) of different widths in one data set: {widths}")
        return torch.from_numpy(np.stack(values))


class Layout(Field):
    """Objects with boxes as token numbers, int64 [B, 3 max_objects + 2] (arXiv 2112.10752, section 4.3.1).

    The .json member lists them under `key` as ``{"category": 3, "box": [left, top, right, bottom]}``, in shares of the
    image as it is seen, perhaps with group, occluded, depiction or inside true. Of a picture that EXIF turns the json
    also has to have the `width` and `height` that the boxes were drawn on. Each becomes three tokens: its class
    (category + num_classes times the sum of those flags' 1, 2, 4, 8) and the places of its corners on a square grid of
    floor(sqrt(vocabulary)) a side; two last tokens say where the crop lies. The first max_objects are taken, in random
    order where the view is random; of them those without an area inside the crop are left out.
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
    ):
        self.side = math.isqrt(vocabulary)
        if not 1 <= num_classes * 2 ** len(self.FLAGS) < vocabulary:
            raise UserError(f"num_classes={num_classes}: 16 times as many class tokens must fit below {vocabulary}")
        self.num_classes = num_classes
        self.key = key
        self.extension = extension
        self.none = vocabulary - 1
        self.max_objects = max_objects

    def read(self, content: bytes, picture: Picture) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
        """Class tokens [K], boxes [K, 4] and the resized image's size."""
        entries = read_entries(content)
        objects = entry(entries, self.key, "missing objects")
        try:
            classes = np.array([self._class_token(found) for found in objects], dtype=np.int64)
            boxes = np.array([_box(found["box"]) for found in objects], dtype=np.float64).reshape(-1, 4)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise BadSample("broken objects", f"{self.key}: {type(error).__name__} {error}") from None
        if not ((boxes >= 0) & (boxes <= 1)).all() or (boxes[:, :2] > boxes[:, 2:]).any():
            raise BadSample("broken objects", f"{self.key}: a box is left, top, right, bottom in shares of the image")
        raster = entries.get("width"), entries.get("height")
        return classes, picture.lay_boxes(boxes, raster) if len(boxes) else boxes, picture.size

    def _class_token(self, found: Mapping[str, Any]) -> int:
        category = found["category"]
        if type(category) is not int or not 0 <= category < self.num_classes:
            raise UserError(f"category {category!r} is not in 0..{self.num_classes - 1}")
        flags = [found.get(name) or False for name in self.FLAGS]
        if not all(flag in (0, 1) for flag in flags):  # "false" would count as true
            raise UserError(f"{', '.join(self.FLAGS)} are true or false")
        return category + self.num_classes * sum(2**place for place, flag in enumerate(flags) if flag)

    def collate(self, values: Sequence[Any], views: Sequence[View], image_size: int) -> torch.Tensor:
        """One row of tokens for each sample."""
        return torch.stack([self._tokens(*v, view, image_size) for v, view in zip(values, views, strict=True)])

    def _tokens(
        self, classes: np.ndarray, boxes: np.ndarray, size: tuple[int, int], view: View, image_size: int
    ) -> torch.Tensor:
        width, height = size
        left, top = view.corner(height, width, image_size)
        crop = np.array([left / width, top / height, (left + image_size) / width, (top + image_size) / height])
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
