"""What a sample carries beside its image: each field reads a member of the shard and becomes one key of the batch.

A field has two halves: `read` decodes (the result may be kept in memory), `collate` applies the views and stacks.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from data.errors import BadSample
from data.transforms import View, decode_mask, resize_nearest


class Field(ABC):
    """One key of the batch. `extension` is the member it needs, `yields` says what the batch gets."""

    extension: str
    yields: str

    @abstractmethod
    def read(self, content: bytes, size: tuple[int, int]) -> Any:
        """Decode the member; `size` is the resized image's (width, height). BadSample if it cannot be used."""

    @abstractmethod
    def collate(self, values: Sequence[Any], views: Sequence[View], image_size: int) -> Any:
        """The batch's value from the samples' own."""


class Caption(Field):
    """Text, list[str]: a key of the .json member, or a whole text member (`extension=txt`, `key=null`).

    A list under the key counts as alternatives; one of them, and one of `prefixes`, is drawn for each sample number.
    """

    yields = "list[str]"

    def __init__(
        self,
        key: str | None = "caption",
        extension: str = "json",
        prefixes: Sequence[str] = ("",),
        max_chars: int = 2000,
    ):
        if not prefixes:
            raise ValueError("prefixes must hold at least one text; '' means none")
        self.key = key
        self.extension = extension
        self.prefixes = tuple(prefixes)
        self.max_chars = max_chars

    def read(self, content: bytes, size: tuple[int, int]) -> tuple[str, ...]:
        """The alternatives, each without surrounding white space and cut at `max_chars`."""
        value = _text(content) if self.key is None else _entry(content, self.key, "missing caption")
        texts = value if isinstance(value, list) else [value]
        if not all(isinstance(text, str) for text in texts):
            raise BadSample("missing caption", f"{self.key!r} is not text")
        kept = tuple(text.strip()[: self.max_chars] for text in texts if text.strip())
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


class Label(Field):
    """A class number, int64 [B]: a key of the .json member, or a whole member (`extension=cls`, `key=null`)."""

    yields = "int64 [B]"

    def __init__(self, key: str | None = "label", extension: str = "json"):
        self.key = key
        self.extension = extension

    def read(self, content: bytes, size: tuple[int, int]) -> int:
        """A non-negative integer."""
        value = _entry(content, self.key, "missing label") if self.key is not None else _text(content).strip()
        if self.key is None and value.isascii() and value.isdigit():
            value = int(value)
        if type(value) is not int or not 0 <= value < 1 << 31:
            raise BadSample("missing label", f"{str(value)[:40]!r} is not a class number")
        return value

    def collate(self, values: Sequence[int], views: Sequence[View], image_size: int) -> torch.Tensor:
        """Stacked; views do not change a class."""
        return torch.tensor(values, dtype=torch.int64)


class Mask(Field):
    """A foreground mask, float32 [B, 1, H, W] of 0 and 1, cut from its image member like the image itself."""

    yields = "float32 [B, 1, H, W]"

    def __init__(self, extension: str = "mask.png"):
        self.extension = extension

    def read(self, content: bytes, size: tuple[int, int]) -> np.ndarray:
        """uint8 [H, W] of 0 and 1, resized with the nearest pixel."""
        return (resize_nearest(decode_mask(content), size) >= 128).astype(np.uint8)

    def collate(self, values: Sequence[np.ndarray], views: Sequence[View], image_size: int) -> torch.Tensor:
        """Cropped and flipped with the image."""
        windows = [view.crop(value, image_size) for value, view in zip(values, views, strict=True)]
        return torch.from_numpy(np.stack(windows)).float()[:, None]


def _text(content: bytes) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadSample("not utf-8", str(error)) from None


def _entry(content: bytes, key: str, missing: str) -> Any:
    """The value under a key of a JSON object."""
    try:
        entries = json.loads(_text(content))
    except (json.JSONDecodeError, RecursionError) as error:
        raise BadSample("broken json", str(error)) from None
    if not isinstance(entries, Mapping) or entries.get(key) is None:
        raise BadSample(missing, f"the json has no {key!r}")
    return entries[key]
